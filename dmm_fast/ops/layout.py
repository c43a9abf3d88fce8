"""The one layout that compiled ops take: ``[P, B, ...]`` with a single particle dimension."""

from typing import Any

import torch
from torch import Size, Tensor


def joint(first: Size, *others: Size) -> Size:
    """The shape that shapes broadcast to; mostly they are equal, which is cheap to see."""
    return first if all(other == first for other in others) else torch.broadcast_shapes(first, *others)


def particles(tensor: Tensor, lead: Size, keep: int) -> Tensor:
    """``tensor`` broadcast to the leading dimensions ``lead`` (particles, then B) and flattened.

    ``keep`` trailing dimensions stay; the result is ``[P, B, ...]``, a view wherever strides allow.
    """
    return _flattened(tensor.expand(*lead, *tensor.shape[tensor.dim() - keep :]), lead)


def starts(tensor: Tensor, lead: Size, width: int) -> Tensor:
    """Starts of sequences, of any shape that broadcasts to ``[*lead, width]``, as ``[P, B, width]``."""
    return _flattened(tensor.expand(*lead, width), lead)


def starts_of_scan(library: Any, tensor: Tensor, lead: Size, width: int) -> Tensor:
    """:func:`starts`, but ``[1, 1, width]`` where all rows start from one.

    Scans of libraries in Python take that, and sum its gradients themselves; the C++ library's do not.
    """
    if library is torch.ops.dmm_fast or tensor.shape[:-1].numel() != 1:
        return starts(tensor, lead, width)
    return tensor.reshape(-1).expand(width).view(1, 1, width)


def _flattened(wide: Tensor, lead: Size) -> Tensor:
    """``wide [*lead, ...]`` with the particle dimensions of ``lead``, none or several, as one."""
    if len(lead) == 1:
        return wide.unsqueeze(0)
    return wide if len(lead) == 2 else wide.flatten(0, len(lead) - 2)


def single_steps(tensor: Tensor, lead: Size) -> Tensor:
    """``tensor [..., width]`` broadcast to leading dimensions ``lead`` and flattened to ``[N, width]``."""
    return tensor.expand(*lead, tensor.shape[-1]).reshape(lead.numel(), tensor.shape[-1])


def as_bool(mask: Tensor | None) -> Tensor | None:
    """A mask of what is observed, as bools."""
    return None if mask is None else mask.to(torch.bool)


def fresh(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous tensors of these shapes: what a compiled op makes for the gradients."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)
