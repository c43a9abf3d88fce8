"""Units of real-valued data: the mean and the standard deviation of each feature."""

from typing import Any

import torch
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast.distributions import Units
from dmm_fast.observations import Observations


def units_of(sequences: Tensor, lengths: Tensor | None, mask: Tensor | None, D: int) -> Units:
    """The mean and the standard deviation of each feature over what is observed, float64 ``[D]``.

    Arguments and errors are those of :meth:`dmm_fast.DMM.standardize`. A feature that never changes keeps
    its unit.
    """
    N, T, _ = check.sequences("sequences", sequences)
    check.shape("sequences", sequences, (N, T, D))
    if lengths is None:
        lengths = torch.full((N,), T, dtype=torch.int64, device=sequences.device)
    check.lengths(lengths, N, T, sequences.device)
    check.observation_mask("mask", mask, sequences)
    keep = Observations(sequences, lengths, mask, T).observed & ~sequences.isnan()
    x = torch.where(keep, sequences, 0.0).double()
    count = keep.sum((0, 1))
    loc = x.sum((0, 1)) / count
    variance = torch.where(keep, x - loc, 0.0).square().sum((0, 1)) / count
    unknown = ~(loc + variance).isfinite()
    if bool(unknown.any()):
        feature = int(unknown.nonzero()[0])
        got = "nothing observed" if int(count[feature]) == 0 else "an infinite one"
        check.fail("sequences", "finite values of every feature", f"{got} in feature {feature}")
    return Units(loc, torch.where(variance > 0, variance.sqrt(), 1.0))


def make_room(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Make buffers for the units where a state dict has some, and none where it has none."""
    for name in ("x_loc", "x_scale"):
        given = state.get(prefix + name)
        # The first parameter is where the others are.
        like = next(module.parameters())
        module._buffers[name] = None if given is None else torch.empty_like(given, device=like.device)
