"""The launch ops of the scans, called without the public ops."""

import torch
from torch import Tensor

LAUNCHES = torch.ops.dmm_fast
P, B, T, H = 1, 2, 3, 4


def _filled(*shape: int) -> Tensor:
    """Free a tensor of NaN, so that the next tensor of its size reuses the memory."""
    return torch.full(shape, float("nan"), device="cuda")


def test_without_latents_the_results_for_units_are_zero() -> None:
    lengths = torch.full((B,), T, device="cuda")
    weights = [_filled(H, 0), _filled(H), _filled(0, H), _filled(0), _filled(0, H), _filled(0)]
    chain, start, units = _filled(P, B, T, 0), _filled(P, B, 0), _filled(P, B, T, H)
    freed = [_filled(P, B, T, H) for _ in range(4)]
    del freed
    *_, g = LAUNCHES._launch_combiner_scan(chain, chain, start, *weights, lengths, [], True)
    assert torch.equal(g, torch.zeros_like(units))
    given = [chain] * 5
    dh, da, *_ = LAUNCHES._launch_combiner_scan_backward(*given, units, *weights, lengths, [])
    assert torch.equal(dh, torch.zeros_like(units))
    assert torch.equal(da, torch.zeros_like(units))
