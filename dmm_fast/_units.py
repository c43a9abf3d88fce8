"""Units of real-valued data: the mean and the standard deviation of each feature."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import Units

NAMES = ("x_loc", "x_scale")
"""Buffers of a model that hold its units."""


def units_of(
    sequences: Tensor, lengths: Tensor | None, mask: Tensor | None, D: int, dtype: torch.dtype
) -> Units:
    """The mean and the standard deviation of each feature over what is observed, ``[D]`` of ``dtype``.

    Arguments and errors are those of :meth:`dmm_fast.DMM.standardize`. A feature that never changes keeps
    its unit.
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
    # By its values: the mean of equal ones may be off by a last bit.
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
    """Make buffers for the units that a state dict of a model has, and none where it has none.

    A state dict that is not of a whole model says nothing about units, and leaves them.
    """
    like = next(module.parameters())  # the first parameter is where the others are
    if any(prefix + name in state for name in NAMES):
        if module._has_units:
            for name in NAMES:
                module._buffers[name] = like.new_ones(module.input_dim)  # type: ignore[call-overload]
    elif f"{prefix}z_0" in state:
        module._buffers.update(dict.fromkeys(NAMES))
