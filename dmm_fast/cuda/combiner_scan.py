"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient."""

import torch
from torch import Tensor

from dmm_fast.cuda.gradients import combiner_gradients
from dmm_fast.cuda.layers import heads_of_hidden
from dmm_fast.cuda.plan import combiner_plan, device_of

__all__ = ["combiner_scan", "combiner_scan_backward"]


def combiner_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    w_z: Tensor,
    b_z: Tensor,
    w_loc: Tensor,
    b_loc: Tensor,
    w_scale: Tensor,
    b_scale: Tensor,
    lengths: Tensor,
    keep_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward ``g [P, B, T, H]``.

    All are zero past the end of each row. Without ``keep_g`` the last is empty.
    """
    P, B, _, Z = eps.shape
    plan = combiner_plan(P * B, h.shape[-1], Z, device_of(eps))
    # Of c = (g + h) / 2 the part of h needs no scan.
    base = heads_of_hidden(h, w_loc, b_loc, w_scale, b_scale, lengths)
    return torch.ops.dmm_fast.combiner_scan_steps(
        base, eps, z_q_0.expand(P, B, Z), w_z, b_z, w_loc, w_scale, lengths, plan.numbers, keep_g
    )


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
    w_z: Tensor,
    w_loc: Tensor,
    w_scale: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``dh, deps, dz_q_0`` and the gradients of the six weights, in the order of the forward's arguments."""
    P, B, _, Z = eps.shape
    plan = combiner_plan(P * B, h.shape[-1], Z, device_of(eps), backward=True)
    dh, da, dout, deps, dz_q_0 = torch.ops.dmm_fast.combiner_scan_steps_backward(
        dz, dloc, dpre_scale, eps, pre_scale, g, w_z, w_loc, w_scale, lengths, plan.numbers
    )
    gradients = combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, lengths)
    dz_q_0, dw_z, db_z, dw_loc, db_loc, dw_scale, db_scale = gradients
    return dh, deps, dz_q_0, dw_z, db_z, dw_loc, db_loc, dw_scale, db_scale
