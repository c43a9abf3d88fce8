"""Checkpoints: one safetensors file that holds a whole training run, written atomically.

A file has its tensors under readable names (``model.emitter.lin_z_to_hidden.weight``,
``optimizer.<parameter>.state.0.exp_avg``, ``rng.cpu``, ``order``) and everything else in one JSON
document in the safetensors metadata. JSON writes a float64 with enough digits to restore it bit for
bit. A CRC-32 over the document and all tensors detects corruption. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast._io import atomic_write
from dmm_fast.model import DMM
from dmm_fast.training import _tree
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._presets import PresetName
from dmm_fast.training._untrusted import check_fields, check_optimizer, check_sizes, check_state, check_units

FORMAT = "dmm_fast"
VERSION = 1

PathLike = str | os.PathLike[str]

_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
"""First bytes of a bare pickle, as old versions of torch write; today's write a zip archive."""

_CONVERT = (
    "a file of torch.save, which is never unpickled here; convert a state dict you trust with "
    "safetensors.torch.save_file(torch.load(old, weights_only=True), new) and an optimizer state "
    "with dmm_fast.training.save_optimizer(new, torch.load(old, weights_only=True))"
)


class CheckpointError(ValueError):
    """A file is not a valid checkpoint: the message names the file, what was expected, and what was found."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a training run needs to resume bit for bit.

    Attributes:
        sizes: the constructor arguments of the :class:`~dmm_fast.model.DMM`.
        config: the training settings, JSON values only.
        data: a fingerprint of the training data, compared on resume.
        model: the DMM's ``state_dict()``, with the averages of its parameters if the run averages them.
        optimizer: ``PyroOptim.get_state()``.
        rng: states of torch's global generators, ``"cpu"`` and, on a GPU, ``"cuda"``.
        epoch: number of completed epochs.
        step: number of completed mini-batches of the current epoch.
        order: int64 ``[N]``, the current epoch's permutation; None between epochs.
        epoch_loss: the current epoch's loss so far, nats.
        best: lowest validation loss so far, nats per time step; None before the first evaluation.
        waited: number of evaluations since that one.
        metrics_bytes: length of ``metrics.jsonl`` in bytes when the checkpoint was saved.
        recovery: the states to go back to when a loss is not finite; empty unless ``recover`` is set.
        unaveraged: the parameters themselves, by name, of a run that averages them; else empty.
    """

    sizes: dict[str, Any]
    config: dict[str, Any]
    data: str
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Tensor]
    epoch: int
    step: int
    order: Tensor | None
    epoch_loss: float
    best: float | None
    metrics_bytes: int
    recovery: dict[str, Any] = dataclasses.field(default_factory=dict)
    unaveraged: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    waited: int = 0


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "sizes": (dict,),
    "config": (dict,),
    "data": (str,),
    "model": (dict,),
    "optimizer": (dict,),
    "rng": (dict,),
    "epoch": (int,),
    "step": (int,),
    "order": (Tensor, type(None)),
    "epoch_loss": (float,),
    "best": (float, type(None)),
    "metrics_bytes": (int,),
    "recovery": (dict,),
    "unaveraged": (dict,),
    "waited": (int,),
}

_LATER_FIELDS: dict[str, type] = {"recovery": dict, "unaveraged": dict, "waited": int}
"""The fields that older checkpoints do not have, with makers of the values that stand for their absence."""


def save_checkpoint(path: PathLike, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` atomically: an earlier file is replaced once the new one is complete.

    Raises:
        OSError: the folder is missing or the disk is full; the earlier file is untouched.
        TypeError: ``config``, ``sizes`` or ``optimizer`` contains a value that is neither a tensor
            nor a JSON value.
    """
    check.kind("checkpoint", checkpoint, Checkpoint)
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    _write(path, "checkpoint", fields)


def load_checkpoint(path: PathLike) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is truncated, corrupt, or of another format or version, or a field is
            invalid.
    """
    fields = {name: make() for name, make in _LATER_FIELDS.items()} | _read(path, "checkpoint")
    if set(fields) != set(_FIELD_TYPES):
        _fail(path, f"the fields {sorted(_FIELD_TYPES)}", sorted(map(str, fields)))
    for name, types in _FIELD_TYPES.items():
        value = fields[name]
        if not isinstance(value, types) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in types)
            _fail(path, f"{name} of type {expected}", type(value).__name__)
    checkpoint = Checkpoint(**fields)
    with _about(path):
        check_fields(checkpoint)
    return checkpoint


def load_dmm(path: PathLike, *, cuda: bool = False) -> DMM:
    """The model of a checkpoint, in evaluation mode.

    Args:
        path: a file written by :func:`save_checkpoint`.
        cuda: put the model on the current CUDA device.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is not a checkpoint, or its tensors do not fit its sizes.
        ValueError: ``cuda`` is set and no CUDA device is available.
    """
    checkpoint = load_checkpoint(path)
    dmm = build_dmm(path, checkpoint.sizes, checkpoint.model, cuda=cuda)
    load_state(path, dmm, checkpoint.model)
    return dmm.eval()


def build_dmm(
    path: PathLike, sizes: Mapping[str, Any], model: Mapping[str, Tensor], *, cuda: bool = False
) -> DMM:
    """A DMM of a checkpoint's sizes, allocated only after the checkpoint's tensors were found to fit them.

    Args:
        path: the checkpoint's file, for error messages.
        sizes: the constructor arguments.
        model: the ``state_dict()`` that is to be loaded.
        cuda: put the model on the current CUDA device.

    Raises:
        CheckpointError: the sizes are invalid, or those of ``model`` differ; nothing has been allocated.
        ValueError: ``cuda`` is set and no CUDA device is available.
    """
    check.kind("sizes", sizes, Mapping)
    check.kind("cuda", cuda, bool)
    if cuda and not torch.cuda.is_available():
        check.fail("cuda", "a CUDA device", "torch.cuda.is_available() is False")
    check_state("model", model)
    with _about(path):
        check_sizes(sizes, model)
    return DMM(**sizes, use_cuda=cuda)


def train_config(path: PathLike, config: Mapping[str, Any]) -> TrainConfig:
    """The settings of the run that wrote a checkpoint.

    Args:
        path: the checkpoint's file, for error messages.
        config: the ``config`` of a :class:`Checkpoint`.

    Raises:
        CheckpointError: a name is not a setting, or a value has the wrong type or is out of range.
    """
    check.kind("config", config, Mapping)
    with _about(path, "the settings of a run"):
        types = typing.get_type_hints(TrainConfig)
        for name, value in config.items():
            if name not in types:
                check.fail("config", "names of settings", repr(name)[:80])
            kinds = typing.get_args(types[name]) or (types[name],)
            # JSON does not distinguish int and float, so an int is accepted for a float setting.
            if type(value) not in (*kinds, *([int] if float in kinds else [])):
                expected = getattr(types[name], "__name__", str(types[name]))
                check.fail(f"config.{name}", expected, check.describe(value))
        preset = config.get("preset")
        named = {} if preset is None else {"preset": PresetName(preset)}
        try:
            return TrainConfig(**{**config, **named})
        except TypeError as error:
            raise ValueError(str(error)) from error


def save_model(path: PathLike, dmm: DMM) -> None:
    """Write the plain ``state_dict()`` as safetensors; the names are those of Pyro's example.

    The parameters are those that ``dmm`` has: after training those of the last step, or their averages. The
    best model of a run is in its ``best.safetensors``.

    Raises:
        OSError: the folder is missing or the disk is full; the earlier file is untouched.
        TypeError: ``dmm`` is not a module.
    """
    check.kind("dmm", dmm, nn.Module)
    tensors = {name: _tree.portable(name, tensor) for name, tensor in dmm.state_dict().items()}
    _write_bytes(path, safetensors_bytes(tensors))


def load_model(path: PathLike, dmm: DMM) -> None:
    """Load parameters from a checkpoint, or from a safetensors state dict of this DMM or of Pyro's.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is not a safetensors file, or its names or shapes differ from those of
            ``dmm``.
    """
    check.kind("dmm", dmm, nn.Module)
    tensors, metadata = _open(path)
    state = load_checkpoint(path).model if FORMAT in metadata else tensors
    load_state(path, dmm, state)


def load_state(path: PathLike, dmm: DMM, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into ``dmm``, strictly; ``path`` is the file it was read from, for error messages.

    Raises:
        CheckpointError: names or shapes differ from those of ``dmm``.
    """
    check.kind("dmm", dmm, nn.Module)
    check_state("state", state)
    if isinstance(dmm, DMM):
        with _about(path):
            check_units(state, dmm.input_dim)
    for name, parameter in dmm.state_dict().items():
        if name not in state:
            continue
        given = state[name]
        if given.shape != parameter.shape:
            _fail(path, f"{name} of shape {tuple(parameter.shape)}", tuple(given.shape))
        if given.dtype not in _tree.DTYPES or given.is_floating_point() != parameter.is_floating_point():
            _fail(path, f"{name} as {parameter.dtype}", given.dtype)
        # The integer tensors of a DMM are the permutations of features in its flows.
        if not given.is_floating_point() and not torch.equal(
            given.cpu().flatten().sort().values, parameter.cpu().flatten().sort().values
        ):
            _fail(path, f"{name} as a permutation", check.describe(given))
    try:
        dmm.load_state_dict(dict(state), strict=True)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: expected the parameters of this DMM, got {reason}") from error


def save_optimizer(path: PathLike, state: Mapping[str, Any]) -> None:
    """Write ``PyroOptim.get_state()`` as safetensors.

    The moments are those of the parameters in training, not of their averages, see ``average_decay``.

    Raises:
        TypeError: ``state`` contains a value that is neither a tensor nor a JSON value.
    """
    check.kind("state", state, Mapping)
    _write(path, "optimizer", {"optimizer": dict(state)})


def load_optimizer(path: PathLike) -> dict[str, Any]:
    """Read the optimizer state from a file of :func:`save_optimizer` or :func:`save_checkpoint`.

    Returns:
        The state as ``PyroOptim.set_state`` accepts it.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is truncated, corrupt, or of another format or version.
    """
    state = _read(path, "optimizer", "checkpoint").get("optimizer")
    if not isinstance(state, dict):
        _fail(path, "an optimizer state", type(state).__name__)
    with _about(path):
        check_optimizer(state)
    return state


def _write(path: PathLike, kind: str, fields: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    root = _tree.encode(fields, "", tensors)
    document = json.dumps({"version": VERSION, "kind": kind, "tree": root})
    metadata = {FORMAT: document, "crc32": str(_crc32(document, tensors))}
    _write_bytes(path, safetensors_bytes(tensors, metadata))


def _write_bytes(path: PathLike, data: bytes) -> None:
    path = check.path("path", path)
    with atomic_write(path) as file:
        file.write(_in_order(data))
    # The rename is an entry of the folder, so the folder has to be flushed too, or a power cut could undo it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _in_order(data: bytes) -> bytes:
    """The file with the keys of its header sorted; without this their order differs between processes."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def _read(path: PathLike, *kinds: str) -> dict[str, Any]:
    tensors, metadata = _open(path)
    if FORMAT not in metadata:
        _fail(path, f"a dmm_fast {kinds[0]}", "another kind of safetensors file")
    document = metadata[FORMAT]
    if metadata.get("crc32") != str(_crc32(document, tensors)):
        _fail(path, f"CRC-32 {metadata.get('crc32')}", f"{_crc32(document, tensors)}: corrupt")
    with _about(path):
        header = _tree.parse(document)
    if header.get("version") != VERSION:
        _fail(path, f"format version {VERSION}", f"version {header.get('version')!r}"[:80])
    if header.get("kind") not in kinds:
        _fail(path, f"a dmm_fast {' or '.join(kinds)}", f"a dmm_fast {header.get('kind')}"[:80])
    with _about(path):
        fields = _tree.decode(header.get("tree"), tensors)
        check.kind("tree", fields, dict)
    return typing.cast("dict[str, Any]", fields)


@contextmanager
def _about(path: PathLike, expected: str = "a checkpoint of dmm_fast") -> Iterator[None]:
    """Turn the error of a failed check into a CheckpointError that names the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: expected {expected}, got {error}") from error


def _open(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file."""
    path = check.path("path", path)
    try:
        with safe_open(path, framework="pt") as opened:
            # Copies, since safetensors may return memory-mapped tensors of a file about to be replaced.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        with open(path, "rb") as file:
            start = file.read(2)
        if start == b"PK" or start in _PICKLES:
            _fail(path, "a safetensors file", _CONVERT)
        _fail(path, "a whole safetensors file", f"a truncated, corrupt or foreign one ({error})")


def _crc32(document: str, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(document.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, crc)
    return crc


def _fail(path: PathLike, expected: str, got: object) -> NoReturn:
    check.fail(str(path), expected, str(got), CheckpointError)
