"""Piano rolls from ``.mat`` files and from Pyro's ``.pickle`` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm_fast import check
from dmm_fast.data._matfile import read_variables
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._pickled import unpickle
from dmm_fast.data._sequences import SequenceSet

LOWEST_NOTE = 21
"""The MIDI note of column 0 of a piano roll (A0)."""
NUM_KEYS = 88
"""The number of columns of a piano roll, MIDI notes 21 to 108."""
SPLITS = ("train", "valid", "test")

# Bytes that Python needs for an array, a list or a number and the reference to it.
PER_SEQUENCE, _PER_STEP, _PER_NOTE = 256, 16, 24

Rolls = Sequence[NDArray[Any]]
NoteLists = Sequence[Sequence[Sequence[int]]]


def read_notes(file: BinaryIO, max_bytes: int = DEFAULT_BYTES) -> dict[str, NoteLists]:
    """Read Pyro's pickled note lists without converting them to rolls; see :func:`dmm_fast.data.load`.

    Raises:
        TypeError: ``file`` is not open for reading bytes.
        ValueError: the content does not have this form or takes more memory than ``max_bytes``, or the pickle
            is broken or contains refused objects.
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
        for i, sequence in enumerate(_list(split, entry(data, split))):
            steps = _list(f"{split}[{i}]", sequence)
            # The memory is counted per reference, since one step may be referenced many times.
            memory.take(f"{split}[{i}]", len(steps) * _PER_STEP)
            if not all(isinstance(step, list | tuple) for step in steps):
                check.fail(f"{split}[{i}]", "a list or tuple of notes at each time step", "another type")
            memory.take(f"{split}[{i}]", sum(map(len, steps)) * _PER_NOTE)
            if not set(map(type, chain.from_iterable(steps))) <= {int}:
                check.fail(f"{split}[{i}]", "whole numbers as notes", "another type")
    return {split: data[split] for split in SPLITS}


def read_pickle(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet]:
    """The piano rolls of Pyro's pickled note lists, by split."""
    # Checked before reading, since the file itself may be too large.
    memory.take("file", file.seek(0, 2))
    file.seek(0)
    notes = _note_lists(file.read(), memory)
    return {split: _from_notes(split, data, memory) for split, data in notes.items()}


def read_mat(file: BinaryIO, memory: Memory) -> Mapping[str, SequenceSet]:
    """The piano rolls of a MATLAB file, by split."""
    data = read_variables(file, [f"{split}data" for split in SPLITS], memory)
    out = {}
    for split in SPLITS:
        key = f"{split}data"
        cells = entry(data, key)
        if cells.dtype != object or cells.ndim != 2 or cells.shape[0] != 1:
            got = f"{cells.dtype} of shape {cells.shape}"
            check.fail(key, "an object array of shape (1, N)", got)
        rolls = list(cells[0])
        for i, roll in enumerate(rolls):
            _check_roll(f"{key}[0][{i}]", roll)
        out[split] = pad(key, rolls, memory)
    return out


def _check_roll(name: str, roll: Any) -> None:
    if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.shape[1] != NUM_KEYS:
        got = f"shape {roll.shape}" if isinstance(roll, np.ndarray) else type(roll).__name__
        check.fail(name, f"a piano roll of shape [T, {NUM_KEYS}]", got)
    if roll.dtype.kind not in "buif" or not np.isin(roll, (0, 1)).all():
        check.fail(name, "a piano roll of 0 and 1", f"other values, as {roll.dtype}")


def pad(name: str, rows: Rolls, memory: Memory) -> SequenceSet:
    """Pad ``[T, D]`` arrays into a set, copying them one at a time into its final memory."""
    D = rows[0].shape[1] if len(rows) else 0
    sequences = _allocate(name, [len(r) for r in rows], D, memory)
    for out, row in zip(sequences, rows, strict=True):
        out[: len(row)] = torch.from_numpy(np.array(row, dtype=np.float32))
    return SequenceSet(sequences, torch.tensor([len(r) for r in rows]))


def _from_notes(name: str, data: NoteLists, memory: Memory) -> SequenceSet:
    sequences = _allocate(name, [len(steps) for steps in data], NUM_KEYS, memory)
    for i, (out, steps) in enumerate(zip(sequences, data, strict=True)):
        t = np.repeat(np.arange(len(steps)), [len(notes) for notes in steps])
        # Checked as Python integers, since those do not overflow.
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


def entry(data: Mapping[str, Any], key: str) -> Any:
    """``data[key]``, or an error that lists the existing keys."""
    if key not in data:
        check.fail("file", f"an entry {key!r}", f"only {sorted(map(str, data))}")
    return data[key]


def _list(name: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        check.fail(name, "a list", type(value).__name__)
    return value
