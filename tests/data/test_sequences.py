"""Sets and batches, compared with Pyro's polyphonic_data_loader."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm_fast.data import Batch, Dataset, SequenceSet, get_mini_batch, reverse_sequences

LOADER = "pyro.contrib.examples.polyphonic_data_loader"


@pytest.fixture(scope="module")
def pyro_loader() -> Iterator[ModuleType]:
    """Import Pyro's loader with a stub of torchvision and without making its directory."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        stubs = {name: ModuleType(name) for name in ("torchvision", "torchvision.datasets")}
        stubs["torchvision"].transforms = ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
        stubs["torchvision"].datasets = stubs["torchvision.datasets"]  # type: ignore[attr-defined]
        stubs["torchvision.datasets"].MNIST = object  # type: ignore[attr-defined]
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        patch.setattr(os, "mkdir", lambda path: None)
        yield importlib.import_module(LOADER)
    for name in set(sys.modules) - before:
        if name.startswith("pyro.contrib.examples"):
            del sys.modules[name]


def make(lengths: list[int], D: int = 3, dtype: torch.dtype = torch.float32) -> SequenceSet:
    x = torch.zeros(len(lengths), max(lengths), D, dtype=dtype)
    for row, n in zip(x, lengths, strict=True):
        row[:n] = torch.randn(n, D, dtype=dtype)
    return SequenceSet(x, torch.tensor(lengths))


def assert_same(ours: Any, theirs: Any) -> None:
    for a, b in zip((ours[0], ours[2], ours[3]), (theirs[0], theirs[2], theirs[3]), strict=True):
        assert a.dtype == b.dtype
        assert a.device == b.device
        assert torch.equal(a, b)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b))


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_get_mini_batch_is_pyros(
    pyro_loader: ModuleType, default: torch.dtype, lengths: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    torch.set_default_dtype(default)
    data = make(lengths)
    # Drawn with replacement: rows repeat, and most lengths tie.
    indices = torch.randint(len(lengths), (int(torch.randint(1, 40, ())),))
    ours = get_mini_batch(indices, data.sequences, data.lengths)
    theirs = pyro_loader.get_mini_batch(indices, data.sequences, data.lengths)
    assert isinstance(ours, Batch)
    assert_same(ours, theirs)


def test_get_mini_batch_is_pyros_with_many_ties(pyro_loader: ModuleType) -> None:
    data = make([3] * 70 + [2] * 70)
    indices = torch.randperm(140)
    args = (indices, data.sequences, data.lengths)
    assert_same(get_mini_batch(*args), pyro_loader.get_mini_batch(*args))


def test_reverse_sequences() -> None:
    x = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    # NaN past the end has no effect.
    x[1, 3] = float("nan")
    y = reverse_sequences(x, torch.tensor([4, 3]))
    assert y[:, :, 0].tolist() == [[4, 3, 2, 1], [7, 6, 5, 0]]
    assert reverse_sequences(x[:1].long(), torch.tensor([0])).tolist() == [[[0]] * 4]


def test_reverse_sequences_gradcheck() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 1, 0])
    assert torch.autograd.gradcheck(lambda v: reverse_sequences(v, lengths), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_gathers_in_order(dtype: torch.dtype) -> None:
    data = make([2, 5, 3], dtype=dtype)
    batch = data.batch(torch.tensor([2, 0, 2]))
    assert torch.equal(batch.mini_batch, data.sequences[[2, 0, 2], :3])
    assert batch.mini_batch_reversed is None
    assert batch.mini_batch_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert batch.mini_batch_mask.dtype == batch.mini_batch.dtype == dtype
    assert batch.mini_batch_seq_lengths.tolist() == [3, 2, 3]
    wider = data.batch(torch.tensor([0]), T=4)
    assert wider.mini_batch.shape == (1, 4, 3)
    assert wider.mini_batch_mask.tolist() == [[1, 1, 0, 0]]


def test_batch_with_given_T_does_not_synchronise() -> None:
    # A meta tensor has no values: reading one would raise.
    data = make([2, 5, 3]).to("meta")
    indices = torch.zeros(2, dtype=torch.int64, device="meta")
    assert data.batch(indices, T=4).mini_batch.shape == (2, 4, 3)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        data.batch(indices)


def test_sizes_and_dataset() -> None:
    data = make([2, 5, 3])
    assert len(data) == 3
    assert data.num_time_steps == 10
    moved = Dataset("name", data, data, make([1])).to("meta")
    assert moved.name == "name"
    assert len(moved.test) == 1
    assert {s.sequences.device.type for s in (moved.train, moved.valid, moved.test)} == {"meta"}


X = torch.zeros(2, 3, 4)
L = torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("sequences", "lengths", "message"),
    [
        (X.long(), L, "sequences: expected a floating-point tensor, got int64"),
        (X.half(), L, "sequences: expected float32 or float64 .* got float16"),
        (X[0], L, r"sequences: .* got float32 of shape \(3, 4\)"),
        (X[:0], L[:0], r"sequences: .* N, T and D at least 1, got float32 of shape \(0, 3, 4\)"),
        (X, L.int(), r"lengths: expected int64 of shape \(2,\) .* got int32"),
        (X, L[:1], r"lengths: .* got int64 of shape \(1,\)"),
        (X, L * 0, "lengths: expected values between 1 and T = 3, got 0"),
        (X, L + 1, "lengths: expected values between 1 and T = 3, got 4"),
        (X + 1, L, "sequences: expected zeros past the end .* in sequence 1"),
        (X - float("inf"), L, "sequences: expected zeros past the end .* in sequence 1"),
        (None, L, "sequences: expected a floating-point tensor, got NoneType None"),
    ],
)
def test_sequence_set_refuses(sequences: Any, lengths: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SequenceSet(sequences, lengths)


@pytest.mark.parametrize(
    ("indices", "T", "message"),
    [
        ([0], None, "indices: expected int64 .* got list"),
        (torch.tensor([0.0]), None, "indices: expected int64 .* got float32"),
        (torch.tensor([[0]]), None, "indices: expected int64 of shape"),
        (torch.tensor([], dtype=torch.int64), None, "indices: expected .* B >= 1"),
        (
            torch.tensor([0], device="meta"),
            None,
            "indices: expected int64 .* got int64 of shape .* on meta",
        ),
        (torch.tensor([0, 2]), None, "indices: expected values between 0 and 1, got 2"),
        (torch.tensor([-1]), None, "indices: expected values between 0 and 1, got -1"),
        (torch.tensor([1]), 0, "T: expected a number of time steps between 1 and 3, got 0"),
        (torch.tensor([1]), 4, "T: expected a number of time steps between 1 and 3, got 4"),
        (torch.tensor([0]), 2, "T: expected at least 3, the longest"),
        (torch.tensor([0]), 3.0, "T: expected a number of time steps between 1 and 3, got float 3.0"),
        (torch.tensor([0]), "3", "T: expected a number of time steps between 1 and 3, got str '3'"),
    ],
)
def test_batch_refuses(indices: Any, T: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        SequenceSet(X, L).batch(indices, T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.padded_steps("2"), r"longest: expected a number of time steps .*, got str '2'"),
        (
            lambda s: s.padded_steps(2, 1.5),
            r"buckets: expected positive numbers of time steps, got float 1.5",
        ),
        (lambda s: s.padded_steps(2, [1, None]), r"buckets: expected positive numbers .*, got NoneType"),
        (lambda s: s.to(None), r"device: expected device or str or int, got NoneType"),
        (lambda s: Dataset(3, s, s, s), r"name: expected str, got int 3"),
        (lambda s: Dataset("name", s, X, s), r"valid: expected SequenceSet, got float32"),
        (lambda s: reverse_sequences([1], L), r"mini_batch: expected Tensor, got list"),
        (lambda s: reverse_sequences(X, [1]), r"lengths: expected Tensor, got list"),
        (lambda s: get_mini_batch([0], X, L), r"mini_batch_indices: expected Tensor, got list"),
        (lambda s: get_mini_batch(L, X, None), r"seq_lengths: expected Tensor, got NoneType"),
    ],
)
def test_other_types_are_refused(call: Callable[[SequenceSet], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        call(SequenceSet(X, L))


def test_numpy_integers_are_accepted() -> None:
    data = SequenceSet(X, L)
    assert data.padded_steps(np.int64(2), np.int32(2)) == 2
    assert data.batch(torch.tensor([0]), T=np.int64(3)).mini_batch.shape == (1, 3, 4)


@given(
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=6),
    steps=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_segments_put_together_are_the_sequences(lengths: list[int], steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    N, T = len(lengths), max(lengths)
    valid = torch.arange(T) < torch.tensor(lengths)[:, None]
    x, controls = (torch.randn(N, T, size) * valid[:, :, None] for size in (3, 2))
    mask = torch.rand(N, T, 3) > 0.3
    whole = SequenceSet(x, torch.tensor(lengths), mask, controls, torch.randn(N, 1))
    cut = whole.segments(steps)
    assert cut.mask is not None
    assert cut.controls is not None
    assert cut.static is not None
    assert whole.mask is not None
    assert whole.controls is not None
    assert whole.static is not None
    assert cut.sequences.shape[1] == int(cut.lengths.max()) <= steps
    assert not cut.mask[torch.arange(cut.sequences.shape[1]) >= cut.lengths[:, None]].any()
    piece = 0
    for row, length in enumerate(lengths):
        number = -(-length // steps)
        pieces, ends = range(piece, piece + number), cut.lengths.tolist()
        own = [ends[i] for i in pieces]
        assert sum(own) == length
        assert max(own) - min(own) <= 1
        for of, among in (
            (whole.sequences, cut.sequences),
            (whole.mask, cut.mask),
            (whole.controls, cut.controls),
        ):
            together = torch.cat([among[i, : ends[i]] for i in pieces])
            assert torch.equal(together.nan_to_num(7.0), of[row, :length].nan_to_num(7.0))
        assert torch.equal(cut.static[list(pieces)], whole.static[[row] * number])
        piece += number
    assert piece == len(cut)


def test_a_set_without_masks_has_segments_without_them() -> None:
    cut = make([5, 2]).segments(3)
    assert cut.mask is None
    assert cut.controls is None
    assert cut.static is None
    assert cut.lengths.tolist() == [2, 3, 2]


@pytest.mark.parametrize("steps", [0, -1])
def test_segments_have_a_step(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: expected a positive number of time steps, got {steps}"):
        make([3]).segments(steps)
