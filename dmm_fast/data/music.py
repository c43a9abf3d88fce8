"""Read piano rolls from ``.mat``, Pyro's ``.pickle`` and ``.npz``; write ``.npz``."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm_fast import check
from dmm_fast.data.files import atomic_write
from dmm_fast.data.sequences import Dataset, SequenceSet

LOWEST_NOTE = 21
"""The MIDI note of column 0 of a piano roll (A0)."""
NUM_KEYS = 88
"""The columns of a piano roll: MIDI notes 21 to 108."""
SPLITS = ("train", "valid", "test")

Rolls = Sequence[NDArray[Any]]
NoteLists = Sequence[Sequence[Sequence[int]]]


def load(path: str | Path) -> Dataset:
    """Read a data set; its name is the file's, without the suffix.

    - ``.mat``, MATLAB v5: ``traindata``, ``validdata``, ``testdata``, each an object array of shape
      ``[1, N]`` of piano rolls ``[T, 88]`` of 0 and 1; column 0 is MIDI note 21.
    - ``.pickle`` or ``.pkl``, what :func:`dmm_fast.data.download` fetches (not the tensors that
      Pyro caches): a dict of ``train``, ``valid`` and ``test``, each a list of sequences; a
      sequence is a list of time steps, a time step a tuple or list of MIDI notes 21 .. 108.
    - ``.npz``, what :func:`save_npz` writes: for each split ``<split>_sequences``, uint8 or float32
      ``[sum of T, D]``, the sequences one after another, and ``<split>_lengths``, int64 ``[N]``.

    Nothing in a file is executed: an unpickler that knows containers and integers reads
    ``.pickle``, and ``.npz`` is read without pickle.

    Raises:
        ImportError: the file is a ``.mat`` and scipy is not installed.
        OSError: the file cannot be opened.
        ValueError: it is not of that form; the message names the file and what was expected.
    """
    path = Path(path)
    readers: dict[str, Callable[[BinaryIO], Mapping[str, SequenceSet]]] = {
        ".mat": _read_mat,
        ".pickle": _read_pickle,
        ".pkl": _read_pickle,
        ".npz": _read_npz,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        check.fail("path", f"a file ending in {', '.join(readers)}", str(path))
    with path.open("rb") as file, _naming(path, path.suffix.lower()):
        return Dataset(path.stem, **reader(file))


def save_npz(dataset: Dataset, path: str | Path) -> None:
    """Write ``dataset`` as the ``.npz`` that :func:`load` reads; the file appears whole or not at
    all.

    A split is stored as uint8 where that is exact (piano rolls), else as float32.

    Raises:
        ValueError: ``path`` does not end in ``.npz``, or a split is float64 and not exact in
            float32.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        check.fail("path", "a file ending in .npz", str(path))
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        data: SequenceSet = getattr(dataset, split)
        lengths = data.lengths.cpu()
        rows = torch.cat([x[:n] for x, n in zip(data.sequences.cpu(), lengths.tolist(), strict=True)])
        arrays[f"{split}_sequences"] = _narrow(split, rows).numpy()
        arrays[f"{split}_lengths"] = lengths.numpy()
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_notes(file: BinaryIO) -> dict[str, NoteLists]:
    """Read Pyro's pickled note lists, without making rolls of them; see :func:`load`.

    Raises:
        ValueError: what is pickled is not of that form.
        Exception: of nearly any type, as ``pickle`` raises them, where the pickle itself is broken
            or holds something refused.
    """
    data = _NoteUnpickler(file, encoding="latin1").load()
    if not isinstance(data, dict):
        check.fail("file", f"a dict of {', '.join(SPLITS)}", type(data).__name__)
    for split in SPLITS:
        for i, sequence in enumerate(_list(split, _entry(data, split))):
            steps = _list(f"{split}[{i}]", sequence)
            if not all(isinstance(step, list | tuple) for step in steps):
                check.fail(f"{split}[{i}]", "a list or tuple of notes at each time step", "another type")
            if not set(map(type, chain.from_iterable(steps))) <= {int}:
                check.fail(f"{split}[{i}]", "whole numbers as notes", "another type")
    return {split: data[split] for split in SPLITS}


def _read_pickle(file: BinaryIO) -> Mapping[str, SequenceSet]:
    return {split: _from_notes(split, data) for split, data in read_notes(file).items()}


def _read_mat(file: BinaryIO) -> Mapping[str, SequenceSet]:
    # Here and not above: scipy.io takes longer to import than this package.
    from scipy.io import loadmat

    data = loadmat(file, variable_names=[f"{split}data" for split in SPLITS])
    out = {}
    for split in SPLITS:
        key = f"{split}data"
        cells = _entry(data, key)
        if cells.dtype != object or cells.ndim != 2 or cells.shape[0] != 1:
            got = f"{cells.dtype} of shape {cells.shape}"
            check.fail(key, "an object array of shape (1, N)", got)
        rolls = list(cells[0])
        for i, roll in enumerate(rolls):
            _check_roll(f"{key}[0][{i}]", roll)
        out[split] = _pad(key, rolls)
    return out


def _read_npz(file: BinaryIO) -> Mapping[str, SequenceSet]:
    out = {}
    with np.load(file, allow_pickle=False) as data:
        for split in SPLITS:
            key = f"{split}_sequences"
            rows, lengths = _entry(data, key), _entry(data, f"{split}_lengths")
            if rows.dtype not in (np.uint8, np.float32) or rows.ndim != 2:
                got = f"{rows.dtype} of shape {rows.shape}"
                check.fail(key, "uint8 or float32 of shape [sum of T, D]", got)
            if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 1).any():
                got = f"{lengths.dtype} of shape {lengths.shape}, or one below 1"
                check.fail(f"{split}_lengths", "int64 of shape [N], each at least 1", got)
            # In Python's integers: a sum of int64 could wrap around to the right number.
            if sum(lengths.tolist()) != len(rows):
                check.fail(f"{split}_lengths", f"a sum of {len(rows)}, the rows of {key}", "another")
            out[split] = _pad(key, np.split(rows, np.cumsum(lengths)[:-1]) if len(lengths) else [])
    return out


def _check_roll(name: str, roll: Any) -> None:
    if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
        got = f"shape {roll.shape}" if isinstance(roll, np.ndarray) else type(roll).__name__
        check.fail(name, f"a piano roll of shape [T, {NUM_KEYS}]", got)
    if roll.dtype.kind not in "buif" or not np.isin(roll, (0, 1)).all():
        check.fail(name, "a piano roll of 0 and 1", f"other values, as {roll.dtype}")


def _pad(name: str, rows: Rolls) -> SequenceSet:
    """Pad ``[T, D]`` arrays into a set, one at a time into the memory that it will keep."""
    sequences = _allocate(name, [len(r) for r in rows], rows[0].shape[1] if len(rows) else 0)
    for out, row in zip(sequences, rows, strict=True):
        out[: len(row)] = torch.as_tensor(np.ascontiguousarray(row))
    return SequenceSet(sequences, torch.tensor([len(r) for r in rows]))


def _from_notes(name: str, data: NoteLists) -> SequenceSet:
    sequences = _allocate(name, [len(steps) for steps in data], NUM_KEYS)
    for i, (out, steps) in enumerate(zip(sequences, data, strict=True)):
        t = np.repeat(np.arange(len(steps)), [len(notes) for notes in steps])
        # Checked as Python integers, which do not overflow.
        notes = list(chain.from_iterable(steps))
        highest = LOWEST_NOTE + NUM_KEYS - 1
        if notes and not LOWEST_NOTE <= min(notes) <= max(notes) <= highest:
            bad = min(notes) if min(notes) < LOWEST_NOTE else max(notes)
            check.fail(f"{name}[{i}]", f"MIDI notes {LOWEST_NOTE} to {highest}", str(bad))
        out[t, np.array(notes, dtype=np.int64) - LOWEST_NOTE] = 1.0
    return SequenceSet(sequences, torch.tensor([len(steps) for steps in data]))


def _allocate(name: str, lengths: Sequence[int], D: int) -> Tensor:
    if not lengths:
        check.fail(name, "at least one sequence", "none")
    if min(lengths) == 0:
        check.fail(f"{name}[{lengths.index(0)}]", "at least one time step", "an empty sequence")
    return torch.zeros(len(lengths), max(lengths), D)


def _narrow(name: str, rows: Tensor) -> Tensor:
    """``rows`` as uint8 where that is exact, else as float32. A NaN, a missing value, stays one."""
    for dtype in (torch.uint8, torch.float32):
        narrow = rows.to(dtype)
        back = narrow.to(rows.dtype)
        if bool(((back == rows) | (back.isnan() & rows.isnan())).all()):
            return narrow
    check.fail(name, "values that float32 holds exactly", check.describe(rows))


def _entry(data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        check.fail("file", f"an entry {key!r}", f"only {sorted(map(str, data))}")
    return data[key]


def _list(name: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        check.fail(name, "a list", type(value).__name__)
    return value


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises on a malformed file into a ValueError that names the file."""
    try:
        yield
    except ImportError:  # scipy is missing: that is not the file's fault
        raise
    except Exception as error:  # the three formats' readers raise nearly every type there is
        raise ValueError(f"{path}: expected a data set as {kind}, got {_say(error)}") from error


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _IntegerType:
    """What ``numpy.dtype`` is to the unpickler: the width, sign and byte order of an integer."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("[iu][1248]", code):
            raise pickle.UnpicklingError(f"notes are integers, not of the numpy type {code!r}")
        self.signed, self.width, self.order = code[0] == "i", int(code[1]), "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError(f"unexpected byte order of a numpy type: {state!r}")
        self.order = state[1]


class _Integer:
    """What ``numpy.core.multiarray.scalar`` is to the unpickler: a Python integer."""

    def __new__(cls, kind: _IntegerType, raw: str | bytes) -> int:  # type: ignore[misc]
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _IntegerType) or len(data) != kind.width:
            raise pickle.UnpicklingError("a numpy scalar whose bytes do not fit its type")
        return int.from_bytes(data, "big" if kind.order == ">" else "little", signed=kind.signed)

    def __setstate__(self, state: Any) -> None:
        # Where this is defined pickle calls it and sets no attributes: no file can change the class.
        raise pickle.UnpicklingError(f"unexpected state {state!r}")


class _NoteUnpickler(pickle.Unpickler):
    """Containers, strings and numbers. numpy's integer scalars, which the files Pyro serves are
    made of, are decoded here to Python integers; numpy itself is not called, and every other name
    is refused.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _IntegerType
        if (module, name) in (
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
        ):
            return _Integer
        raise pickle.UnpicklingError(f"refused {module}.{name}: only containers and integers are read")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"refused the persistent id {pid!r}")
