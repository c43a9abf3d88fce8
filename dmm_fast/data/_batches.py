"""Mini-batches of sequences of different lengths, and a replacement for Pyro's ``get_mini_batch``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from dmm_fast import check
from dmm_fast.reference import valid_steps


class Batch(NamedTuple):
    """The positional arguments of ``DMM.model`` and ``DMM.guide``: ``svi.step(*batch)``.

    ``mini_batch`` is ``[B, T, D]``. ``mini_batch_mask`` is ``[B, T]`` or, for a set with missing values,
    ``[B, T, D]``, of the same floating dtype: 1 at observed entries, 0 at missing ones and past the end of a
    sequence. ``mini_batch_seq_lengths`` is int64 ``[B]``. ``mini_batch_reversed`` is the packed,
    time-reversed batch that Pyro's example feeds to its RNN, or ``None``.
    """

    mini_batch: Tensor
    mini_batch_reversed: PackedSequence | None
    mini_batch_mask: Tensor
    mini_batch_seq_lengths: Tensor


class ControlledBatch(NamedTuple):
    """A :class:`Batch` with the further arguments of ``DMM.model`` and ``DMM.guide``: ``svi.step(*batch)``.

    The first four fields are those of :class:`Batch`. ``annealing_factor`` is the weight of the KL terms, set
    by ``batch._replace(annealing_factor=0.3)``. ``controls`` is ``[B, T, U]``, zero past the end of a
    sequence, and ``static`` is ``[B, S]``, both with the dtype of ``mini_batch``; either may be ``None``.
    """

    mini_batch: Tensor
    mini_batch_reversed: PackedSequence | None
    mini_batch_mask: Tensor
    mini_batch_seq_lengths: Tensor
    annealing_factor: float | Tensor = 1.0
    controls: Tensor | None = None
    static: Tensor | None = None


def reverse_sequences(mini_batch: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence in time within its length: ``y[b, t] = x[b, lengths[b] - 1 - t]``.

    Args:
        mini_batch: ``[B, T, D]``, any dtype.
        lengths: ``[B]`` int64, each in ``0 .. T``.

    Returns:
        ``[B, T, D]``, zero past the end of each sequence, whatever ``mini_batch`` contains there.

    Raises:
        TypeError: ``mini_batch`` is not a dense tensor.
        ValueError: a shape is wrong, or ``lengths`` has the wrong dtype or values out of range.
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
    """Replacement for Pyro's ``get_mini_batch`` without its loops over rows.

    It replaces ``pyro.contrib.examples.polyphonic_data_loader.get_mini_batch``. The sequences are sorted by
    length, longest first, with ties in Pyro's order, and cut to the longest one. Missing values are not
    supported; use :meth:`SequenceSet.batch` for them.

    Args:
        mini_batch_indices: ``[B]`` int64.
        sequences: ``[N, T_max, D]``.
        seq_lengths: ``[N]`` int64.
        cuda: move the batch, the mask and the packed reversed batch to the current CUDA device; the lengths
            stay on the CPU.

    Returns:
        A :class:`Batch`: ``[B, T, D]``, the packed reversed batch, the mask ``[B, T]`` in torch's default
        dtype, and the lengths ``[B]``.

    Raises:
        TypeError: ``sequences`` is not a dense tensor, or ``cuda`` is not a bool.
        ValueError: a shape is wrong, an index or a length is out of range, or ``cuda`` is set and no CUDA
            device is available.
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
    # Pyro's order: a flipped ascending sort, which orders ties differently from a descending sort.
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
