"""Building blocks of the reference: masks of valid steps, and numerically stable functions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def valid_steps(lengths: Tensor, T: int) -> Tensor:
    """``[B, T]`` bool: True if step ``t`` of row ``b`` lies within ``lengths[b]``."""
    return torch.arange(T, device=lengths.device) < lengths.unsqueeze(-1)


def previous(z: Tensor, z_0: Tensor) -> Tensor:
    """``z`` shifted by one step, ``[..., B, T, Z]``: ``z_0`` (broadcast), then ``z[..., :-1, :]``."""
    first = z_0.unsqueeze(-2) if z_0.dim() > 1 else z_0
    return torch.cat([first.expand_as(z[..., :1, :]), z[..., :-1, :]], dim=-2)


def log_softplus(x: Tensor) -> Tensor:
    """``log(log(1 + exp(x)))``, finite for any finite ``x``: for very negative ``x`` it is ``x``."""
    # Below the cut, log(1 + e^x) = e^x (1 - e^x / 2) to within rounding, and e^x may underflow.
    cut = math.log(torch.finfo(x.dtype).eps)
    small = x < cut
    return torch.where(small, x, F.softplus(x.masked_fill(small, 0.0)).log())


def positive_softplus(x: Tensor) -> Tensor:
    """Softplus bounded away from zero, so that a zero residual over an underflowed scale is 0 and not NaN."""
    return F.softplus(x).clamp_min(torch.finfo(x.dtype).tiny)


def _normal_log_density(value: Tensor, loc: Tensor, pre_scale: Tensor) -> Tensor:
    residual = (value - loc) / positive_softplus(pre_scale)
    return -0.5 * residual.square() - log_softplus(pre_scale) - HALF_LOG_2PI


def sum_normal(value: Tensor, loc: Tensor, pre_scale: Tensor, keep: Tensor) -> Tensor:
    """``[..., B]``: sum over entries marked in ``keep`` of log N(value; loc, softplus(pre_scale))."""
    # Dropped scales are replaced too: if one underflows to zero, its gradient would be NaN.
    pre_scale = torch.where(keep, pre_scale, 0.0)
    return sum_steps(_normal_log_density(value, loc, pre_scale), keep)


def sum_steps(terms: Tensor, keep: Tensor) -> Tensor:
    """``[..., B]``: sum over time and features of the terms marked in ``keep``."""
    return terms.masked_fill(~keep, 0.0).sum((-2, -1))


def observed(lengths: Tensor, T: int, mask: Tensor | None) -> Tensor:
    """``[B, T, 1]`` or ``[B, T, D]`` bool: True at entries that are valid and not masked out."""
    valid = valid_steps(lengths, T).unsqueeze(-1)
    if mask is None:
        return valid
    return valid & (mask if mask.dim() == 3 else mask.unsqueeze(-1)).bool()
