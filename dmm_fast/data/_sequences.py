"""Sets of sequences of different lengths, and mini-batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from dmm_fast import check
from dmm_fast.reference import valid_steps


class Batch(NamedTuple):
    """The positional arguments of ``DMM.model`` and ``DMM.guide``: ``svi.step(*batch)``.

    ``mini_batch`` is ``[B, T, D]``, ``mini_batch_mask`` ``[B, T]`` or, for a set with missing values,
    ``[B, T, D]``, of the same floating dtype (1 where something is observed, 0 where a value is missing and
    past the end of a sequence), ``mini_batch_seq_lengths`` ``[B]`` int64.
    ``mini_batch_reversed`` is the packed, time-reversed batch that Pyro's example feeds to its RNN,
    or ``None``.
    """

    mini_batch: Tensor
    mini_batch_reversed: PackedSequence | None
    mini_batch_mask: Tensor
    mini_batch_seq_lengths: Tensor


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """N sequences, padded at the end to the longest; values may be missing.

    On a CPU a NaN within a sequence is a missing value, and one past its end is blank. On a GPU, where
    looking for one would wait, ``mask`` has to say what is missing: make the set on a CPU and move it with
    :meth:`to`.

    Args:
        sequences: ``[N, T_max, D]``, float32 or float64, zero (or NaN) past the end of each sequence. As an
            attribute of a set with ``mask`` it is NaN wherever a value is missing, and zero past the end.
        lengths: ``[N]`` int64 on the same device, each in ``1 .. T_max``.
        mask: ``[N, T_max, D]`` bool on the same device, True where a value is observed; None: everywhere but
            at a NaN. As an attribute it is False at each NaN and past the end too, and None where no mask was
            given and nothing is missing.

    Raises:
        TypeError: ``sequences`` is not a floating-point tensor, or ``mask`` no tensor.
        ValueError: a shape, dtype, device or length is wrong, the set is empty, or (looked at only
            on a CPU, where reading costs no wait) something other than zero lies past the end of a
            sequence.
    """

    sequences: Tensor
    lengths: Tensor
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and bring missing values into one form."""
        x = check.floating("sequences", self.sequences)
        if x.layout != torch.strided:
            check.fail("sequences", "a dense tensor", str(x.layout), TypeError)
        if x.dim() != 3 or 0 in x.shape or x.dtype not in (torch.float32, torch.float64):
            expected = "float32 or float64 of shape [N, T, D] with N, T and D at least 1"
            check.fail("sequences", expected, check.describe(x))
        N, T, _ = x.shape
        check.lengths(self.lengths, N, T, x.device, minimum=1)
        if self.mask is not None:
            _check_mask(self.mask, x)
        valid = valid_steps(self.lengths, T)[:, :, None]
        readable = check.values_are_readable(x)
        if readable:
            _check_padding(x, valid)
        if self.mask is not None or (readable and bool(x.isnan().any())):
            self._unify(x, valid)

    def _unify(self, x: Tensor, valid: Tensor) -> None:
        """NaN and False where a value is missing, zero and False past the end of a sequence."""
        observed = valid & ~x.isnan()
        if self.mask is not None:
            object.__setattr__(self, "mask", observed & self.mask)
        elif not torch.equal(observed, valid.expand_as(observed)):
            object.__setattr__(self, "mask", observed)
        observed = observed if self.mask is None else self.mask
        blank = x.new_zeros(()).masked_fill(valid, float("nan"))
        object.__setattr__(self, "sequences", torch.where(observed, x, blank))

    def __len__(self) -> int:
        """N, the number of sequences."""
        return self.sequences.shape[0]

    @property
    def num_time_steps(self) -> int:
        """The time steps of all sequences together, padding not counted (read on the host).

        A step counts whether or not something is observed in it.
        """
        return int(self.lengths.sum())

    def to(self, device: torch.device | str) -> SequenceSet:
        """The same set on ``device``."""
        device = check.device("device", device)
        mask = None if self.mask is None else self.mask.to(device)
        return SequenceSet(self.sequences.to(device), self.lengths.to(device), mask)

    def batch(self, indices: Tensor, T: int | None = None) -> Batch:
        """Gather the sequences ``indices``, in that order, on the device the set lives on.

        Args:
            indices: ``[B]`` int64 on the device of the set.
            T: time steps of the result, ``1 .. T_max``. ``None`` is the longest of these sequences,
                which the host must read; with a number nothing waits for a device, so a step can be
                captured in a CUDA graph. A sequence longer than ``T`` is refused on a CPU; on a
                GPU, where looking at its length would wait, it is cut to ``T`` steps.

        Returns:
            A :class:`Batch` without ``mini_batch_reversed``: our guide reads ``mini_batch``
            backwards. Where the set has a ``mask``, ``mini_batch_mask`` is ``[B, T, D]`` and
            ``mini_batch`` zero at what is missing.

        Raises:
            TypeError: ``T`` is no int.
            ValueError: ``indices`` or ``T`` is not of that form, or (on a CPU) out of range.
        """
        T_max = self.sequences.shape[1]
        self._check_indices(indices)
        lengths = self.lengths.index_select(0, indices)
        if T is None:
            T = int(lengths.max())
        else:
            _check_steps("T", T, T_max)
            if check.values_are_readable(lengths) and int(lengths.max()) > T:
                longest = int(lengths.max())
                check.fail("T", f"at least {longest}, the longest sequence of the batch", str(T))
        lengths = lengths.clamp(max=T)
        mini_batch = self.sequences[:, :T].index_select(0, indices)
        if self.mask is None:
            return Batch(mini_batch, None, valid_steps(lengths, T).to(mini_batch.dtype), lengths)
        mask = self.mask[:, :T].index_select(0, indices)
        return Batch(mini_batch.masked_fill(~mask, 0.0), None, mask.to(mini_batch.dtype), lengths)

    def padded_steps(self, longest: int, buckets: int | Sequence[int] = 16) -> int:
        """A ``T`` for :meth:`batch` out of few: the steps to pad a batch to whose longest has ``longest``.

        Args:
            longest: time steps of the longest sequence of the batch, ``1 .. T_max``.
            buckets: the next multiple of a number, or the next of several numbers, ``T_max`` at most.

        Raises:
            TypeError: a number is no int.
            ValueError: ``longest`` is out of range, or a bucket is not positive.
        """
        T_max = self.sequences.shape[1]
        _check_steps("longest", longest, T_max)
        sizes = list(buckets) if isinstance(buckets, Sequence) else [buckets]
        expected = "positive numbers of time steps"
        if any(check.integer("buckets", size, expected) < 1 for size in sizes):
            check.fail("buckets", expected, str(buckets))
        if not isinstance(buckets, Sequence):
            sizes = [-(-longest // buckets) * buckets]
        return min([size for size in sizes if longest <= size < T_max], default=T_max)

    def _check_indices(self, indices: Tensor) -> None:
        N, device = len(self), self.sequences.device
        if not isinstance(indices, Tensor) or indices.device != device:
            check.fail("indices", f"int64 of shape (B,) on {device}, B >= 1", check.describe(indices))
        check.ints_between("indices", indices, None, 0, N - 1)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in its three splits."""

    name: str
    train: SequenceSet
    valid: SequenceSet
    test: SequenceSet

    def __post_init__(self) -> None:
        """Check the arguments."""
        check.kind("name", self.name, str)
        for split in ("train", "valid", "test"):
            check.kind(split, getattr(self, split), SequenceSet)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on ``device``."""
        splits = (split.to(device) for split in (self.train, self.valid, self.test))
        return Dataset(self.name, *splits)


def reverse_sequences(mini_batch: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence in time within its length: ``y[b, t] = x[b, lengths[b] - 1 - t]``.

    Args:
        mini_batch: ``[B, T, D]``, any dtype.
        lengths: ``[B]`` int64, each in ``0 .. T``.

    Returns:
        ``[B, T, D]``, zero past the end of each sequence whatever ``mini_batch`` holds there.

    Raises:
        TypeError: ``mini_batch`` is no dense tensor.
        ValueError: a shape does not fit, or ``lengths`` has another dtype or values.
    """
    check.dense("mini_batch", mini_batch)
    if mini_batch.dim() != 3:
        check.fail("mini_batch", "shape [B, T, D]", check.describe(mini_batch))
    B, T, _ = mini_batch.shape
    check.ints_between("lengths", check.dense("lengths", lengths), B, 0, T)
    lengths = lengths.to(mini_batch.device)
    t = torch.arange(T, device=mini_batch.device)
    valid = valid_steps(lengths, T)
    source = torch.where(valid, lengths[:, None] - 1 - t, t)
    gathered = mini_batch.gather(1, source[:, :, None].expand_as(mini_batch))
    return gathered.masked_fill(~valid[:, :, None], 0)


def get_mini_batch(
    mini_batch_indices: Tensor, sequences: Tensor, seq_lengths: Tensor, cuda: bool = False
) -> Batch:
    """Stand in for Pyro's ``get_mini_batch``, without its loops over rows.

    That is ``pyro.contrib.examples.polyphonic_data_loader.get_mini_batch``. The sequences are
    sorted by length, longest first, ties in the order Pyro gives them, and cut to the longest. It knows
    of no missing values: :meth:`SequenceSet.batch` does.

    Args:
        mini_batch_indices: ``[B]`` int64.
        sequences: ``[N, T_max, D]``.
        seq_lengths: ``[N]`` int64.
        cuda: move batch, mask and packed reverse to the current CUDA device; the lengths stay.

    Returns:
        A :class:`Batch` of ``[B, T, D]``, the packed reverse, ``[B, T]`` in torch's default dtype,
        ``[B]``.

    Raises:
        TypeError: ``sequences`` is no dense tensor, or ``cuda`` no bool.
        ValueError: a shape does not fit, an index or a length is out of range, or ``cuda`` is set and there
            is no CUDA device.
    """
    check.dense("sequences", sequences)
    if sequences.dim() != 3 or 0 in sequences.shape:
        check.fail("sequences", "shape [N, T_max, D], none of them 0", check.describe(sequences))
    N, T_max, _ = sequences.shape
    check.ints_between("seq_lengths", check.dense("seq_lengths", seq_lengths), N, 1, T_max)
    indices = check.dense("mini_batch_indices", mini_batch_indices)
    check.ints_between("mini_batch_indices", indices, None, 0, N - 1)
    check.kind("cuda", cuda, bool)
    if cuda:
        check.device("cuda", "cuda")
    lengths = seq_lengths[mini_batch_indices]
    # Pyro's order: an ascending sort flipped, which is not a descending sort where lengths tie.
    order = torch.sort(lengths).indices.flip(0)
    lengths = lengths[order]
    T = int(lengths[0])
    mini_batch = sequences[mini_batch_indices[order], :T]
    mask = valid_steps(lengths, T).to(device=mini_batch.device, dtype=torch.get_default_dtype())
    if cuda:
        mini_batch, mask = mini_batch.cuda(), mask.cuda()
    backwards = reverse_sequences(mini_batch, lengths)
    packed = pack_padded_sequence(backwards, lengths.cpu(), batch_first=True)
    return Batch(mini_batch, packed, mask, lengths)


def _check_steps(name: str, steps: object, T_max: int) -> None:
    """Check a number of time steps against the longest."""
    expected = f"a number of time steps between 1 and {T_max}"
    if not 1 <= check.integer(name, steps, expected) <= T_max:
        check.fail(name, expected, str(steps))


def _check_mask(mask: Tensor, x: Tensor) -> None:
    """Check the kind, the shape and the place of a mask of ``x [N, T, D]``."""
    check.kind("mask", mask, Tensor)
    if mask.dtype != torch.bool or mask.shape != x.shape or mask.device != x.device:
        check.fail("mask", f"bool of shape {tuple(x.shape)} on {x.device}", check.describe(mask))


def _check_padding(x: Tensor, valid: Tensor) -> None:
    """Check that nothing but zero and NaN lies past the end of a sequence."""
    dirty = ((x != 0) & ~x.isnan() & ~valid).any(dim=2).any(dim=1)
    if bool(dirty.any()):
        row = int(dirty.nonzero()[0])
        expected = "zeros past the end of each sequence"
        check.fail("sequences", expected, f"something else in sequence {row}")
