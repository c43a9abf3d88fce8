"""Sequence sets made from arrays, and their division into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm_fast import check
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._sequences import Dataset, SequenceSet

_DTYPES = (torch.float32, torch.float64)


def from_arrays(
    arrays: Any, *, controls: Any = None, static: Any = None, dtype: torch.dtype = torch.float32
) -> SequenceSet:
    """A sequence set made from arrays of numpy or torch, or from nested lists of numbers.

    Args:
        arrays: one array ``[N, T, D]``, or N arrays ``[T_i, D]``, or N arrays ``[T_i]`` for a single feature.
            NaN and the masked entries of a numpy masked array are missing values.
        controls: the controls u_t in the same form, ``[N, T, U]`` or N arrays ``[T_i, U]`` or ``[T_i]``, with
            the same numbers of time steps and without NaN.
        static: ``[N, S]``, or ``[N]`` for a single one, the covariates of each sequence.
        dtype: dtype of the set, float32 or float64.

    Raises:
        TypeError: an argument is not such an array, or contains anything but real numbers.
        ValueError: a shape is wrong, an array is empty, or a number is infinite in ``dtype``.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES:
        check.fail("dtype", "torch.float32 or torch.float64", check.describe(dtype))
    rows = _rows("arrays", arrays)
    lengths = [len(row) for row in rows]
    sequences = _padded("arrays", rows, dtype)
    padded_controls = None
    if controls is not None:
        control_rows = _rows("controls", controls)
        given = [len(row) for row in control_rows]
        if given != lengths:
            i = next((i for i, (a, b) in enumerate(zip(given, lengths, strict=False)) if a != b), None)
            if i is None:
                check.fail("controls", f"{len(lengths)} sequences, as arrays has", str(len(given)))
            check.fail(f"controls[{i}]", f"{lengths[i]} time steps, as arrays[{i}] has", str(given[i]))
        padded_controls = _padded("controls", control_rows, dtype)
    facts = None
    if static is not None:
        values = _numbers("static", static)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) != len(rows) or values.size == 0:
            check.fail("static", f"shape ({len(rows)}, S) or ({len(rows)},)", f"shape {values.shape}")
        facts = torch.from_numpy(values).to(dtype)
    return SequenceSet(sequences, torch.tensor(lengths), None, padded_controls, facts)


def split(
    data: SequenceSet, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, name: str = "data"
) -> Dataset:
    """Divide a set at random into training, validation and test data.

    Args:
        data: at least three sequences. Each split keeps their order.
        fractions: three positive numbers whose sum is 1. The numbers of validation and test sequences are
            rounded to the nearest integer, at least one; the other sequences are for training.
        seed: seed of the division; torch's generators are not used.
        name: name of the data set.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are too few sequences, or a number is out of range.
    """
    check.kind("data", data, SequenceSet)
    check.kind("name", name, str)
    expected = "three positive numbers whose sum is 1"
    shares = [
        check.number("fractions", f, expected) for f in check.elements("fractions", fractions, expected)
    ]
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        check.fail("fractions", expected, str(shares))
    seed = check.int_between("seed", seed, 0)
    N = len(data)
    num_valid, num_test = (max(1, round(N * share)) for share in shares[1:])
    num_train = N - num_valid - num_test
    if num_train < 1:
        expected = "at least 3 sequences, so that each split gets one (cut a long one into several)"
        if N > 2:
            expected = f"enough sequences to train on beside {num_valid} and {num_test} held out"
        check.fail("data", expected, str(N))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    parts = order.split([num_train, num_valid, num_test])
    return Dataset(name, *(_chosen(data, part.sort().values) for part in parts))


def _chosen(data: SequenceSet, indices: Tensor) -> SequenceSet:
    """The sequences ``indices`` of ``data``, padded to the longest one."""
    indices = indices.to(data.lengths.device)
    lengths = data.lengths[indices]
    T = int(lengths.max())
    in_time = [None if x is None else x[indices, :T] for x in (data.sequences, data.mask, data.controls)]
    sequences, mask, controls = in_time
    assert sequences is not None
    return SequenceSet(
        sequences, lengths, mask, controls, None if data.static is None else data.static[indices]
    )


def _rows(name: str, arrays: Any) -> list[NDArray[Any]]:
    """The arrays ``[T_i, D]`` in one array ``[N, T, D]`` or in several arrays."""
    expected = "an array [N, T, D], or a list of arrays [T_i, D] or [T_i]"
    if isinstance(arrays, np.ndarray | Tensor):
        whole = _numbers(name, arrays)
        if whole.ndim != 3 or 0 in whole.shape:
            check.fail(name, f"{expected}, not empty", f"one of shape {whole.shape}")
        return list(whole)
    if isinstance(arrays, str | bytes | dict) or not isinstance(arrays, Sequence):
        check.fail(name, expected, check.describe(arrays), TypeError)
    if not arrays:
        check.fail(name, "at least one sequence", "none")
    rows = [_numbers(f"{name}[{i}]", each) for i, each in enumerate(arrays)]
    rows = [row[:, None] if row.ndim == 1 else row for row in rows]
    D = rows[0].shape[-1] if rows[0].ndim else 0
    for i, row in enumerate(rows):
        if row.ndim != 2 or 0 in row.shape or row.shape[1] != D:
            like = "" if i == 0 else f" with D = {D}, as {name}[0] has"
            check.fail(f"{name}[{i}]", f"shape [T, D] or [T]{like}, not empty", f"shape {row.shape}")
    return rows


def _numbers(name: str, value: Any) -> NDArray[Any]:
    """The real numbers in an array or in nested lists, as a numpy array."""
    if isinstance(value, Tensor):
        value = check.dense(name, value).detach().cpu()
        # numpy has no bfloat16, and float16 overflows sooner.
        value = value.double().numpy() if value.is_floating_point() else value.resolve_conj().numpy()
    expected = "an array of real numbers"
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "buif":
        filled: NDArray[Any] = np.ma.filled(value.astype(np.float64), np.nan)
        return filled
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        check.fail(name, expected, "lists of different lengths, or other objects in them", TypeError)
    except RuntimeError:  # a tensor on another device, in a list
        check.fail(name, expected, check.describe(value), TypeError)
    if array.dtype.kind not in "buif":
        check.fail(name, expected, f"{type(value).__name__} of {array.dtype}"[:80], TypeError)
    return array


def _padded(name: str, rows: list[NDArray[Any]], dtype: torch.dtype) -> Tensor:
    """``[N, T_max, D]``, padded with zeros."""
    N, T, D = len(rows), max(map(len, rows)), rows[0].shape[1]
    Memory(DEFAULT_BYTES).take(name, N * T * D * dtype.itemsize)
    padded = torch.zeros(N, T, D, dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row, dtype=np.float64))
        if bool(padded[i].isinf().any()):
            check.fail(f"{name}[{i}]", f"finite numbers in {dtype}, or NaN", "an infinite one")
    return padded
