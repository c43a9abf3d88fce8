"""Mini-batches of a training run: the order of the sequences in an epoch, and the arguments of each step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmm_fast.data import ControlledBatch, SequenceSet
from dmm_fast.infer import DataParallel


class Step(NamedTuple):
    """The sequences of a step, the padded number of time steps, and the number of valid ones in all."""

    indices: Tensor
    T: int
    num_time_steps: int


def num_mini_batches(lengths: Tensor, size: int, segment_steps: int | None) -> int:
    """The number of mini-batches of an epoch, counted without cutting the data.

    Args:
        lengths: ``[N]``, the time steps of each sequence.
        size: sequences, or segments, in a mini-batch.
        segment_steps: as for :class:`MiniBatches`.
    """
    if segment_steps is None:
        return math.ceil(len(lengths) / size)
    return math.ceil(sum(-(-length // segment_steps) for length in lengths.tolist()) / size)


class MiniBatches:
    """Mini-batches of a training set, on the device that holds it.

    Args:
        train: the sequences.
        size: sequences in a mini-batch; the last of an epoch may have fewer.
        segment_steps: cut the sequences into segments of at most this many time steps, which then are the
            sequences; None: take them whole.
        pads: pad mini-batches to few different numbers of time steps, as CUDA graphs need it.
        ranks: the processes of a data-parallel run, which take the same mini-batches; None: a single one.
    """

    def __init__(
        self,
        train: SequenceSet,
        size: int,
        segment_steps: int | None = None,
        *,
        pads: bool,
        ranks: DataParallel | None,
    ) -> None:
        self._num = num_mini_batches(train.lengths, size, segment_steps)
        train = train if segment_steps is None else train.segments(segment_steps)
        self._train, self._size, self._pads, self._ranks = train, size, pads, ranks
        # On the host, so that choosing T for a batch on a GPU needs no synchronisation.
        self._lengths = train.lengths.cpu()
        self.num_sequences = len(self._lengths)
        self.num_time_steps = train.num_time_steps

    def __len__(self) -> int:
        return self._num

    def order(self) -> Tensor:
        """A new order of the sequences, int64 ``[N]``, the same in all processes."""
        order = torch.randperm(self.num_sequences)
        return order if self._ranks is None else self._ranks.of_main(order)

    def step(self, order: Tensor, step: int) -> Step:
        """Mini-batch number ``step`` of an epoch in this order."""
        start = step * self._size
        indices = order[start : start + self._size]
        lengths = self._lengths[indices]
        # Longest first, with ties in the order of Pyro's example: the same seed then pairs the same noise
        # with the same sequences, and a CPU kernel can drop rows as sequences end.
        indices = indices[torch.sort(lengths).indices.flip(0)]
        T = int(lengths.max())
        device = self._train.sequences.device
        if device.type == "cuda":
            # A copy from pinned memory is asynchronous.
            indices = indices.pin_memory().to(device, non_blocking=True)
        if self._pads:
            T = self._train.padded_steps(T)
        return Step(indices, T, int(lengths.sum()))

    def gather(self, indices: Tensor, T: int, factor: float | Tensor) -> tuple[Any, ...]:
        """The arguments of model and guide, gathered on the device that holds the data."""
        batch = self._train.batch(indices, T)
        if isinstance(batch, ControlledBatch):
            return batch._replace(annealing_factor=factor)
        return (*batch, factor)
