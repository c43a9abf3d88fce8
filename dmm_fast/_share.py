"""The rows of a mini-batch that one process of a data-parallel run computes, and their noise.

Every process draws the noise of the whole mini-batch and keeps that of its own rows. The random generators of
all processes then stay alike, and the noise of a row does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Share(NamedTuple):
    """Rows ``rank, rank + size, rank + 2 size, ..`` of a mini-batch of ``total`` rows.

    Of a mini-batch sorted by length, every ``size``-th row gives all processes about as much work.
    A process for which no row is left computes row 0, which does not count: see :attr:`is_empty`.
    """

    rank: int
    size: int
    total: int

    @property
    def is_empty(self) -> bool:
        """True if this process has no rows."""
        return self.rank >= self.total

    @property
    def rows(self) -> slice:
        """The rows to compute."""
        return slice(0, 1) if self.is_empty else slice(self.rank, None, self.size)

    @property
    def num_rows(self) -> int:
        """The number of rows to compute, at least one."""
        return len(range(self.total)[self.rows])


_CURRENT: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Draw the noise of whole mini-batches while entered, and use that of the rows of ``share``."""
    token = _CURRENT.set(share)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def rows_to_draw(B: int) -> int:
    """The number of rows for which noise is drawn, where the model has ``B`` rows."""
    share = _CURRENT.get()
    return B if share is None or share.num_rows != B else share.total


def own_rows(noise: Tensor) -> Tensor:
    """The rows of this process, of noise ``[..., B, T, Z]`` that was drawn for the whole mini-batch."""
    share = _CURRENT.get()
    assert share is not None
    return noise[..., share.rows, :, :]


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``F.dropout`` of ``x [..., B, T, H]``, with the own rows of a mask drawn for the whole mini-batch."""
    *lead, B, T, H = x.shape
    if rows_to_draw(B) == B or not training or p == 0:
        return F.dropout(x, p, training)
    return x * own_rows(F.dropout(x.new_ones(*lead, rows_to_draw(B), T, H), p, training))


def rows_of(value: Any, share: Share) -> Any:
    """The rows of ``share`` of a tensor with the rows of the whole mini-batch; other values as they are."""
    if isinstance(value, PackedSequence):
        padded, lengths = pad_packed_sequence(value, batch_first=True)
        is_sorted = value.sorted_indices is None
        rows = share.rows
        return pack_padded_sequence(padded[rows], lengths[rows], batch_first=True, enforce_sorted=is_sorted)
    has_rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == share.total
    return value[share.rows] if has_rows else value


def spread_rows(values: Tensor, share: Share) -> Tensor:
    """``[share.total]``: ``values [share.num_rows]`` at the rows of ``share``, and zero elsewhere."""
    spread = torch.zeros(share.total, dtype=values.dtype, device=values.device)
    if not share.is_empty:
        spread[share.rows] = values
    return spread
