"""Sequence sets in ``.npz`` and ``.npy`` files, read without pickle."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm_fast import check
from dmm_fast._io import atomic_write
from dmm_fast.data._arrays import from_arrays
from dmm_fast.data._memory import Memory
from dmm_fast.data._piano_rolls import PER_SEQUENCE, SPLITS, entry, pad
from dmm_fast.data._sequences import Dataset, SequenceSet

_EXACT: tuple[type, ...] = (np.uint8, np.float32)


def save_npz(dataset: Dataset, path: str | Path) -> None:
    """Write ``dataset`` atomically as an ``.npz`` file for :func:`load`.

    A split, its controls and its covariates are stored as uint8 if that is exact (piano rolls), else as
    float32.

    Raises:
        ValueError: ``path`` does not end in ``.npz``, or a split has float64 values that float32 cannot
            represent exactly.
        OSError: the file cannot be written.
    """
    path = check.path("path", path)
    check.kind("dataset", dataset, Dataset)
    if path.suffix.lower() != ".npz":
        check.fail("path", "a file ending in .npz", str(path))
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        data: SequenceSet = getattr(dataset, split)
        check.kind(f"dataset.{split}", data, SequenceSet)
        lengths = data.lengths.cpu()
        for name, padded in (("sequences", data.sequences), ("controls", data.controls)):
            if padded is not None:
                rows = torch.cat([x[:n] for x, n in zip(padded.cpu(), lengths.tolist(), strict=True)])
                arrays[f"{split}_{name}"] = _narrow(split, rows).numpy()
        if data.static is not None:
            arrays[f"{split}_static"] = _narrow(split, data.static.cpu()).numpy()
        arrays[f"{split}_lengths"] = lengths.numpy()
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet] | SequenceSet:
    """The three splits written by :func:`save_npz`, or a single set to be divided.

    A single set has ``sequences``, ``[N, T, D]`` with or without ``lengths``, or ``[sum of T, D]`` with them,
    and optionally ``controls`` of the same form and ``static``, ``[N, S]``; all of any real dtype.
    """
    with zipfile.ZipFile(file) as archive:
        if "sequences.npy" in archive.namelist():
            return _read_one(archive, memory)
        return {split: _read_split(archive, split, memory) for split in SPLITS}


def read_npy(file: BinaryIO, memory: Memory) -> SequenceSet:
    """A set in one array ``[N, T, D]``."""
    return from_arrays(_read_array("file", file, memory))


def _read_one(archive: zipfile.ZipFile, memory: Memory) -> SequenceSet:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    strange = sorted(names - {"sequences", "lengths", "controls", "static"})
    if strange:
        check.fail("file", "sequences and optional lengths, controls and static", f"{strange[0]!r}"[:80])
    given = {name: _array(archive, name, memory) for name in sorted(names)}
    lengths = given.pop("lengths", None)
    static = given.pop("static", None)
    rows = {name: _divided(name, array, lengths, memory) for name, array in given.items()}
    return from_arrays(rows["sequences"], controls=rows.get("controls"), static=static)


def _divided(name: str, array: NDArray[Any], lengths: NDArray[Any] | None, memory: Memory) -> Any:
    """The sequences in an array, in which they are concatenated or padded."""
    if lengths is None:
        if array.ndim != 3:
            check.fail(name, "shape [N, T, D], or [sum of T, D] and an entry 'lengths'", str(array.shape))
        return array
    if array.ndim == 3:
        _check_lengths("lengths", lengths, memory)
        if len(lengths) != len(array) or int(lengths.max(initial=0)) > array.shape[1]:
            check.fail("lengths", f"{len(array)} lengths up to {array.shape[1]}", "other numbers")
        return [row[:n] for row, n in zip(array, lengths, strict=True)]
    return _parts(name, array, "lengths", lengths, memory)


def _read_split(archive: zipfile.ZipFile, split: str, memory: Memory) -> SequenceSet:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    key, lengths_key = f"{split}_sequences", f"{split}_lengths"
    rows, lengths = _array(archive, key, memory), _array(archive, lengths_key, memory)
    data = pad(key, _parts(key, rows, lengths_key, lengths, memory, _EXACT), memory)
    controls, static = None, None
    key = f"{split}_controls"
    if key in names:
        rows = _array(archive, key, memory)
        controls = pad(key, _parts(key, rows, lengths_key, lengths, memory, _EXACT), memory).sequences
    key = f"{split}_static"
    if key in names:
        facts = _array(archive, key, memory)
        if facts.dtype not in _EXACT or facts.ndim != 2:
            got = f"{facts.dtype} of shape {facts.shape}"
            check.fail(key, "uint8 or float32 of shape [N, S]", got)
        static = torch.from_numpy(facts.astype(np.float32))
    return SequenceSet(data.sequences, data.lengths, data.mask, controls, static)


def _parts(
    key: str,
    rows: NDArray[Any],
    lengths_key: str,
    lengths: NDArray[Any],
    memory: Memory,
    dtypes: tuple[type, ...] | None = None,
) -> list[NDArray[Any]]:
    """The sequences that are concatenated in an array ``[sum of T, D]``."""
    if rows.ndim != 2 or (dtypes is not None and rows.dtype not in dtypes):
        kinds = "numbers" if dtypes is None else "uint8 or float32"
        check.fail(key, f"{kinds} of shape [sum of T, D]", f"{rows.dtype} of shape {rows.shape}")
    _check_lengths(lengths_key, lengths, memory)
    # In Python integers, since a sum of int64 could wrap around to the right number.
    if sum(lengths.tolist()) != len(rows):
        check.fail(lengths_key, f"a sum of {len(rows)}, the rows of {key}", "another")
    return np.split(rows, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _check_lengths(key: str, lengths: NDArray[Any], memory: Memory) -> None:
    if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 1).any():
        got = f"{lengths.dtype} of shape {lengths.shape}, or one below 1"
        check.fail(key, "int64 of shape [N], each at least 1", got)
    memory.take(key, len(lengths) * PER_SEQUENCE)


def _array(archive: zipfile.ZipFile, key: str, memory: Memory) -> NDArray[Any]:
    entry({name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}, key)
    with archive.open(f"{key}.npy") as file:
        return _read_array(key, file, memory)


def _read_array(key: str, file: Any, memory: Memory) -> NDArray[Any]:
    """An array in numpy's format, read after its header was checked against the memory limit."""
    version = np.lib.format.read_magic(file)
    # Format 2.0 allows headers of more than 65535 bytes, and numpy reads whatever length they claim.
    if version != (1, 0):
        check.fail(key, "an array in format 1.0", f"{version[0]}.{version[1]}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if min(shape, default=0) < 0:
        check.fail(key, "sizes from 0", str(shape)[:80])
    memory.take(key, math.prod(shape) * dtype.itemsize)
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _narrow(name: str, rows: Tensor) -> Tensor:
    """``rows`` as uint8 if that is exact, else as float32. NaN, a missing value, is preserved."""
    for dtype in (torch.uint8, torch.float32):
        narrow = rows.to(dtype)
        back = narrow.to(rows.dtype)
        if bool(((back == rows) | (back.isnan() & rows.isnan())).all()):
            return narrow
    check.fail(name, "values that float32 holds exactly", check.describe(rows))
