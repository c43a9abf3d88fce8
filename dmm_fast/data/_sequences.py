"""Sets of sequences of different lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.data._batches import Batch, ControlledBatch
from dmm_fast.reference import valid_steps


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """N sequences, padded at the end to the longest one; values may be missing.

    On a CPU, NaN within a sequence is a missing value, and NaN past its end is ignored. On a GPU the values
    are not searched for NaN, which would need a synchronisation, so missing values have to be marked in
    ``mask``: create the set on a CPU and move it with :meth:`to`.

    Args:
        sequences: ``[N, T_max, D]``, float32 or float64, zero (or NaN) past the end of each sequence. The
            attribute of a set with ``mask`` is NaN at missing values and zero past the end.
        lengths: ``[N]`` int64 on the same device, each in ``1 .. T_max``.
        mask: ``[N, T_max, D]`` bool on the same device, True at observed values; None: all but NaN are
            observed. The attribute is also False at NaN and past the end; it is None if no mask was given and
            no value is missing.
        controls: ``[N, T_max, U]`` of the same dtype and device as ``sequences``, the controls u_t of each
            step: finite within a sequence, zero (or NaN) past its end. The attribute is zero there.
        static: ``[N, S]`` likewise, the finite covariates of each sequence.

    Raises:
        TypeError: ``sequences``, ``controls`` or ``static`` is not a floating-point tensor, or ``mask`` is
            not a tensor.
        ValueError: a shape, dtype, device or length is wrong, the set is empty, or (checked only on a CPU,
            where reading values needs no synchronisation) values past the end of a sequence are not zero, or
            controls or covariates are not finite.
    """

    sequences: Tensor
    lengths: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None
    static: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and normalise the representation of missing values."""
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
            _check_padding("sequences", x, valid)
        if self.controls is not None:
            controls = _covariates("controls", self.controls, x, (N, T), "[N, T_max, U]", valid)
            object.__setattr__(self, "controls", controls)
        if self.static is not None:
            _covariates("static", self.static, x, (N,), "[N, S]", valid.new_ones(N, 1))
        if self.mask is not None or (readable and bool(x.isnan().any())):
            self._unify(x, valid)

    def _unify(self, x: Tensor, valid: Tensor) -> None:
        """Set NaN and False at missing values, zero and False past the end of each sequence."""
        observed = valid & ~x.isnan()
        if self.mask is not None:
            object.__setattr__(self, "mask", observed & self.mask)
        elif not torch.equal(observed, valid.expand_as(observed)):
            object.__setattr__(self, "mask", observed)
        observed = observed if self.mask is None else self.mask
        blank = x.new_zeros(()).masked_fill(valid, float("nan"))
        object.__setattr__(self, "sequences", torch.where(observed, x, blank))

    def __len__(self) -> int:
        """The number N of sequences."""
        return self.sequences.shape[0]

    @property
    def num_time_steps(self) -> int:
        """The total number of time steps of all sequences, without padding (read on the host).

        A step counts even if all its values are missing.
        """
        return int(self.lengths.sum())

    def to(self, device: torch.device | str) -> SequenceSet:
        """The same set on ``device``."""
        device = check.device("device", device)
        given = (self.mask, self.controls, self.static)
        moved = (None if tensor is None else tensor.to(device) for tensor in given)
        return SequenceSet(self.sequences.to(device), self.lengths.to(device), *moved)

    def segments(self, steps: int) -> SequenceSet:
        """The same data in segments of at most ``steps`` time steps, each a sequence of its own.

        Each sequence is cut into as few segments as possible, whose lengths differ by at most one. They
        follow one another in the result, with the mask, the controls and the covariates of their sequence.
        Training on them takes more steps in an epoch, with less memory and without the padding of long
        sequences, but sees no dependence across a cut: the first step of a segment is a first step to it.

        Args:
            steps: largest number of time steps of a segment.

        Raises:
            TypeError: ``steps`` is not an int.
            ValueError: ``steps`` is not positive.
        """
        if check.integer("steps", steps, "a positive number of time steps") < 1:
            check.fail("steps", "a positive number of time steps", str(steps))
        rows, starts, lengths = [], [], []
        for row, length in enumerate(self.lengths.tolist()):
            number = -(-length // steps)
            bounds = [length * i // number for i in range(number + 1)]
            rows += [row] * number
            starts += bounds[:-1]
            lengths += [end - start for start, end in itertools.pairwise(bounds)]
        device = self.sequences.device
        row_of, start_of, length_of = (torch.tensor(each, device=device) for each in (rows, starts, lengths))
        inside = valid_steps(length_of, max(lengths))
        # Steps past the end of a segment are read from its first step, and set to zero.
        step_of = start_of[:, None] + torch.where(inside, torch.arange(max(lengths), device=device), 0)

        def cut(values: Tensor) -> Tensor:
            return values[row_of[:, None], step_of].masked_fill(~inside[:, :, None], 0)

        return SequenceSet(
            cut(self.sequences),
            length_of,
            None if self.mask is None else cut(self.mask),
            None if self.controls is None else cut(self.controls),
            None if self.static is None else self.static[row_of],
        )

    def batch(self, indices: Tensor, T: int | None = None) -> Batch | ControlledBatch:
        """Gather the sequences ``indices``, in that order, on the device of the set.

        Args:
            indices: ``[B]`` int64 on the device of the set.
            T: number of time steps of the result, ``1 .. T_max``. ``None``: the length of the longest of
                these sequences, which the host must read. With a number no synchronisation is needed, so a
                step can be captured in a CUDA graph. A sequence longer than ``T`` is refused on a CPU; on a
                GPU, where its length is not read, it is cut to ``T`` steps.

        Returns:
            A :class:`Batch` without ``mini_batch_reversed``, since the guide reads ``mini_batch`` itself
            backward. If the set has a ``mask``, ``mini_batch_mask`` is ``[B, T, D]``, and ``mini_batch`` is
            zero at missing values. A set with ``controls`` or ``static`` returns a
            :class:`ControlledBatch`.

        Raises:
            TypeError: ``T`` is not an int.
            ValueError: ``indices`` or ``T`` has the wrong form or (on a CPU) is out of range.
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
            mask = valid_steps(lengths, T)
        else:
            mask = self.mask[:, :T].index_select(0, indices)
            mini_batch = mini_batch.masked_fill(~mask, 0.0)
        batch = Batch(mini_batch, None, mask.to(mini_batch.dtype), lengths)
        if self.controls is None and self.static is None:
            return batch
        controls = None if self.controls is None else self.controls[:, :T].index_select(0, indices)
        static = None if self.static is None else self.static.index_select(0, indices)
        return ControlledBatch(*batch, controls=controls, static=static)

    def padded_steps(self, longest: int, buckets: int | Sequence[int] = 16) -> int:
        """Round ``longest`` up to one of a few numbers of time steps, as a ``T`` for :meth:`batch`.

        Args:
            longest: number of time steps of the longest sequence of the batch, ``1 .. T_max``.
            buckets: an int: round up to its next multiple; several ints: to the next of these. The result is
                at most ``T_max``.

        Raises:
            TypeError: a number is not an int.
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
    """A named data set with its three splits."""

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


def _check_steps(name: str, steps: object, T_max: int) -> None:
    """Check a number of time steps against the maximum."""
    expected = f"a number of time steps between 1 and {T_max}"
    if not 1 <= check.integer(name, steps, expected) <= T_max:
        check.fail(name, expected, str(steps))


def _check_mask(mask: Tensor, x: Tensor) -> None:
    """Check the dtype, shape and device of a mask of ``x [N, T, D]``."""
    check.kind("mask", mask, Tensor)
    if mask.dtype != torch.bool or mask.shape != x.shape or mask.device != x.device:
        check.fail("mask", f"bool of shape {tuple(x.shape)} on {x.device}", check.describe(mask))


def _check_padding(name: str, x: Tensor, valid: Tensor) -> None:
    """Check that all values past the end of a sequence are zero or NaN."""
    dirty = ((x != 0) & ~x.isnan() & ~valid).any(dim=2).any(dim=1)
    if bool(dirty.any()):
        row = int(dirty.nonzero()[0])
        expected = "zeros past the end of each sequence"
        check.fail(name, expected, f"other values in sequence {row}")


def _covariates(
    name: str, value: object, x: Tensor, lead: tuple[int, ...], layout: str, valid: Tensor
) -> Tensor:
    """Check covariates of the sequences ``x``, and return them with zero where ``valid`` is False.

    ``lead`` is their shape without the last dimension; ``valid`` has the shape ``(*lead, 1)``.
    """
    given = check.floating(name, value)
    check.like(name, given, x, "sequences")
    if given.dim() != len(lead) + 1 or tuple(given.shape[:-1]) != lead or given.shape[-1] == 0:
        sizes = ", ".join(map(str, lead))
        check.fail(name, f"shape ({sizes}, *) as {layout}, not empty", check.describe(given))
    if check.values_are_readable(given):
        if given.dim() == 3:
            _check_padding(name, given, valid)
        bad = ~given.isfinite() & valid
        if bool(bad.any()):
            place = tuple(bad.nonzero()[0].tolist())
            check.fail(name, "finite numbers within each sequence", f"{given[place].item()} at {place}")
    return torch.where(valid, given, 0.0)
