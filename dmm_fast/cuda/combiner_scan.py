"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient."""

import torch
from torch import Tensor

from dmm_fast.cuda.devices import device_of
from dmm_fast.cuda.gradients import combiner_gradients
from dmm_fast.cuda.layers import heads_of_hidden
from dmm_fast.cuda.plan import combiner_plan
from dmm_fast.ops._scan_gemms import allows_tf32
from dmm_fast.reference import CombinerWeights


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor, keep_g: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward pass ``g [P, B, T, H]``.

    All are zero past the end of each row. Without ``keep_g``, ``g`` is empty.
    """
    P, B, _, Z = eps.shape
    plan = combiner_plan(P * B, h.shape[-1], Z, device_of(eps), tf32=allows_tf32())
    # The contribution of h to c = (g + h) / 2 needs no scan.
    base = heads_of_hidden(h, CombinerWeights(*weights), lengths)
    start = z_q_0.expand(P, B, Z)
    return torch.ops.dmm_fast._launch_combiner_scan(base, eps, start, *weights, lengths, plan.numbers, keep_g)


def combiner_scan_backward(
    dz: Tensor,
    dloc: Tensor,
    dpre_scale: Tensor,
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    z: Tensor,
    pre_scale: Tensor,
    g: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``dh, deps, dz_q_0`` and the gradients of the weights."""
    P, B, _, Z = eps.shape
    plan = combiner_plan(P * B, h.shape[-1], Z, device_of(eps), backward=True, tf32=allows_tf32())
    dh, da, dout, deps, dz_q_0 = torch.ops.dmm_fast._launch_combiner_scan_backward(
        dz, dloc, dpre_scale, eps, pre_scale, g, *weights, lengths, plan.numbers
    )
    dz_q_0, *dweights = combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, lengths)
    return dh, deps, dz_q_0, dweights
