"""Units of real-valued data: the mean and the standard deviation of each feature."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import Units

NAMES = ("x_loc", "x_scale")
"""Names of the buffers that hold a model's units."""


def units_of(
    sequences: Tensor, lengths: Tensor | None, mask: Tensor | None, D: int, dtype: torch.dtype
) -> Units:
    """The mean and the standard deviation of each feature over its observed values, ``[D]`` of ``dtype``.

    Arguments and errors are those of :meth:`dmm_fast.DMM.standardize`. The scale of a constant feature is 1.
    """
    N, T, _ = check.sequences("sequences", sequences)
    check.shape("sequences", sequences, (N, T, D))
    if lengths is None:
        lengths = torch.full((N,), T, dtype=torch.int64, device=sequences.device)
    check.lengths(lengths, N, T, sequences.device)
    check.observation_mask("mask", mask, (N, T, D), sequences.device)
    keep = MiniBatch(sequences, lengths, mask, T).observed & ~sequences.isnan()
    x = torch.where(keep, sequences, 0.0).double()
    count = keep.sum((0, 1))
    loc = x.sum((0, 1)) / count
    scale = (torch.where(keep, x - loc, 0.0).square().sum((0, 1)) / count).sqrt()
    # A constant feature is recognised by its extremes: rounding may give equal values a scale above 0.
    lowest = torch.where(keep, x, math.inf).amin((0, 1))
    units = Units(loc, torch.where(lowest == torch.where(keep, x, -math.inf).amax((0, 1)), 1.0, scale))
    unknown = ~((units.loc + units.scale).to(dtype).isfinite() & (units.scale.to(dtype) > 0))
    if bool(unknown.any()):
        feature = int(unknown.nonzero()[0])
        got = "nothing observed" if int(count[feature]) == 0 else f"one of {scale[feature].item():g}"
        expected = f"a mean and a standard deviation of every feature that {dtype} holds"
        check.fail("sequences", expected, f"{got} in feature {feature}")
    return Units(units.loc.to(dtype), units.scale.to(dtype))


def make_room(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Create buffers for the units in a model's state dict, or remove them if the state dict has none.

    A state dict of only a part of a model leaves the units unchanged.
    """
    like = next(module.parameters())  # all parameters have the same device and dtype
    if any(prefix + name in state for name in NAMES):
        if module._has_units:
            for name in NAMES:
                module._buffers[name] = like.new_ones(module.input_dim)  # type: ignore[call-overload]
    elif f"{prefix}z_0" in state:
        module._buffers.update(dict.fromkeys(NAMES))
