"""Read piano rolls from ``.mat``, Pyro's ``.pickle`` and ``.npz``; write ``.npz``."""

from __future__ import annotations

import math
import zipfile
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
from dmm_fast._io import atomic_write
from dmm_fast.data._matfile import read_variables
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._pickled import unpickle
from dmm_fast.data._sequences import Dataset, SequenceSet

LOWEST_NOTE = 21
"""The MIDI note of column 0 of a piano roll (A0)."""
NUM_KEYS = 88
"""The columns of a piano roll: MIDI notes 21 to 108."""
SPLITS = ("train", "valid", "test")

# Bytes that Python takes for an array, a list or a number and what refers to it.
_PER_SEQUENCE, _PER_STEP, _PER_NOTE = 256, 16, 24

Rolls = Sequence[NDArray[Any]]
NoteLists = Sequence[Sequence[Sequence[int]]]


def load(path: str | Path, *, max_bytes: int = DEFAULT_BYTES) -> Dataset:
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

    Args:
        path: the file.
        max_bytes: refuse a file that takes more memory than this, padding included, before that memory is
            allocated; a small file can ask for a lot.

    Raises:
        ImportError: the file is a ``.mat`` and scipy is not installed.
        OSError: the file cannot be opened.
        TypeError: ``path`` is no path, or ``max_bytes`` no int.
        ValueError: it is not of that form, or takes more memory; the message names the file and what was
            expected.
    """
    path = check.path("path", path)
    memory = Memory(check.int_between("max_bytes", max_bytes, 1))
    readers: dict[str, Callable[[BinaryIO, Memory], Mapping[str, SequenceSet]]] = {
        ".mat": _read_mat,
        ".pickle": _read_pickle,
        ".pkl": _read_pickle,
        ".npz": _read_npz,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        check.fail("path", f"a file ending in {', '.join(readers)}", str(path))
    with path.open("rb") as file, _naming(path, path.suffix.lower()):
        return Dataset(path.stem, **reader(file, memory))


def save_npz(dataset: Dataset, path: str | Path) -> None:
    """Write ``dataset`` as the ``.npz`` that :func:`load` reads; the file appears whole or not at
    all.

    A split is stored as uint8 where that is exact (piano rolls), else as float32.

    Raises:
        ValueError: ``path`` does not end in ``.npz``, or a split is float64 and not exact in
            float32.
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
        rows = torch.cat([x[:n] for x, n in zip(data.sequences.cpu(), lengths.tolist(), strict=True)])
        arrays[f"{split}_sequences"] = _narrow(split, rows).numpy()
        arrays[f"{split}_lengths"] = lengths.numpy()
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_notes(file: BinaryIO, max_bytes: int = DEFAULT_BYTES) -> dict[str, NoteLists]:
    """Read Pyro's pickled note lists, without making rolls of them; see :func:`load`.

    Raises:
        TypeError: ``file`` is not open for reading bytes.
        ValueError: what is pickled is not of that form, takes more memory than ``max_bytes``, or the pickle
            itself is broken or holds something refused.
    """
    memory = Memory(check.int_between("max_bytes", max_bytes, 1))
    content = file.read() if hasattr(file, "read") else None
    if not isinstance(content, bytes):
        check.fail("file", "a file open for reading bytes", check.describe(file), TypeError)
    return _note_lists(content, memory)


def _note_lists(content: bytes, memory: Memory) -> dict[str, NoteLists]:
    data = unpickle(content, memory)
    if not isinstance(data, dict):
        check.fail("file", f"a dict of {', '.join(SPLITS)}", type(data).__name__)
    for split in SPLITS:
        for i, sequence in enumerate(_list(split, _entry(data, split))):
            steps = _list(f"{split}[{i}]", sequence)
            # The steps may be few that stand there many times over.
            memory.take(f"{split}[{i}]", len(steps) * _PER_STEP)
            if not all(isinstance(step, list | tuple) for step in steps):
                check.fail(f"{split}[{i}]", "a list or tuple of notes at each time step", "another type")
            memory.take(f"{split}[{i}]", sum(map(len, steps)) * _PER_NOTE)
            if not set(map(type, chain.from_iterable(steps))) <= {int}:
                check.fail(f"{split}[{i}]", "whole numbers as notes", "another type")
    return {split: data[split] for split in SPLITS}


def _read_pickle(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet]:
    # Before it is read: the file itself may be too large.
    memory.take("file", file.seek(0, 2))
    file.seek(0)
    notes = _note_lists(file.read(), memory)
    return {split: _from_notes(split, data, memory) for split, data in notes.items()}


def _read_mat(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet]:
    data = read_variables(file, [f"{split}data" for split in SPLITS], memory)
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
        out[split] = _pad(key, rolls, memory)
    return out


def _read_npz(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet]:
    out = {}
    with zipfile.ZipFile(file) as archive:
        for split in SPLITS:
            key = f"{split}_sequences"
            rows = _array(archive, key, memory)
            lengths = _array(archive, f"{split}_lengths", memory)
            if rows.dtype not in (np.uint8, np.float32) or rows.ndim != 2:
                got = f"{rows.dtype} of shape {rows.shape}"
                check.fail(key, "uint8 or float32 of shape [sum of T, D]", got)
            if lengths.dtype != np.int64 or lengths.ndim != 1 or (lengths < 1).any():
                got = f"{lengths.dtype} of shape {lengths.shape}, or one below 1"
                check.fail(f"{split}_lengths", "int64 of shape [N], each at least 1", got)
            memory.take(f"{split}_lengths", len(lengths) * _PER_SEQUENCE)
            # In Python's integers: a sum of int64 could wrap around to the right number.
            if sum(lengths.tolist()) != len(rows):
                check.fail(f"{split}_lengths", f"a sum of {len(rows)}, the rows of {key}", "another")
            parts = np.split(rows, np.cumsum(lengths)[:-1]) if len(lengths) else []
            out[split] = _pad(key, parts, memory)
    return out


def _array(archive: zipfile.ZipFile, key: str, memory: Memory) -> NDArray[Any]:
    """An array of an ``.npz``, read only when its header says that there is memory for it."""
    _entry({name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}, key)
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        # Format 2.0 is for headers of more than 65535 bytes, and reads whatever length they claim.
        if version != (1, 0):
            check.fail(key, "an array in format 1.0", f"{version[0]}.{version[1]}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if min(shape, default=0) < 0:
            check.fail(key, "sizes from 0", str(shape)[:80])
        memory.take(key, math.prod(shape) * dtype.itemsize)
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _check_roll(name: str, roll: Any) -> None:
    if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
        got = f"shape {roll.shape}" if isinstance(roll, np.ndarray) else type(roll).__name__
        check.fail(name, f"a piano roll of shape [T, {NUM_KEYS}]", got)
    if roll.dtype.kind not in "buif" or not np.isin(roll, (0, 1)).all():
        check.fail(name, "a piano roll of 0 and 1", f"other values, as {roll.dtype}")


def _pad(name: str, rows: Rolls, memory: Memory) -> SequenceSet:
    """Pad ``[T, D]`` arrays into a set, one at a time into the memory that it will keep."""
    D = rows[0].shape[1] if len(rows) else 0
    sequences = _allocate(name, [len(r) for r in rows], D, memory)
    for out, row in zip(sequences, rows, strict=True):
        out[: len(row)] = torch.from_numpy(np.array(row, dtype=np.float32))
    return SequenceSet(sequences, torch.tensor([len(r) for r in rows]))


def _from_notes(name: str, data: NoteLists, memory: Memory) -> SequenceSet:
    sequences = _allocate(name, [len(steps) for steps in data], NUM_KEYS, memory)
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


def _allocate(name: str, lengths: Sequence[int], D: int, memory: Memory) -> Tensor:
    if not lengths:
        check.fail(name, "at least one sequence", "none")
    if min(lengths) == 0:
        check.fail(f"{name}[{lengths.index(0)}]", "at least one time step", "an empty sequence")
    memory.take(name, len(lengths) * max(lengths) * D * torch.float32.itemsize)
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
