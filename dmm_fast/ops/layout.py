"""The one layout that compiled ops take: ``[P, B, ...]`` with a single particle dimension."""

from typing import Any

import torch
from torch import Size, Tensor


def particles(tensor: Tensor, lead: Size, keep: int) -> Tensor:
    """``tensor`` broadcast to the leading dimensions ``lead`` (particles, then B) and flattened.

    ``keep`` trailing dimensions stay; the result is ``[P, B, ...]``, a view wherever strides allow.
    """
    wide = tensor.expand(*lead, *tensor.shape[tensor.dim() - keep :])
    if len(lead) == 1:
        return wide.unsqueeze(0)
    return wide if len(lead) == 2 else wide.flatten(0, len(lead) - 2)


def starts(library: Any, tensor: Tensor, lead: Size) -> Tensor:
    """Starts of sequences: :func:`particles`, but ``[1, 1, width]`` where all start from one.

    Libraries in Python take that, and sum its gradients themselves; the C++ library takes no such thing.
    """
    if library is torch.ops.dmm_fast or tensor.numel() != tensor.shape[-1]:
        return particles(tensor, lead, 1)
    return tensor.reshape(1, 1, -1)


def single_steps(tensor: Tensor, lead: Size) -> Tensor:
    """``tensor [..., width]`` broadcast to leading dimensions ``lead`` and flattened to ``[N, width]``."""
    return tensor.expand(*lead, tensor.shape[-1]).reshape(lead.numel(), tensor.shape[-1])


def as_bool(mask: Tensor | None) -> Tensor | None:
    """What is observed, as bools."""
    return None if mask is None else mask.to(torch.bool)


def fresh(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Contiguous tensors of these shapes: what a compiled op makes for the gradients."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)
