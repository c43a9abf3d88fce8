"""Drawing the posterior chain z_{1:T} with normalizing flows, forward in time, and its gradient.

A step has two launches for the combiner and two for each of K flows. Before the backward scan, the flows'
inputs and activations at all steps are recomputed in a separate launch: recomputing them within the scan
would take 4 K + 2 launches per step instead of 2 K + 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import CombinerWeights, FlowWeights
from dmm_fast.triton import combiner_steps, flow_steps, scan
from dmm_fast.triton.combiner_steps import Drawn
from dmm_fast.triton.common import on_device_of
from dmm_fast.triton.flow_steps import Sizes
from dmm_fast.triton.rows import constants, decoded, entry_at, rows_of, steps_of
from dmm_fast.triton.step_gradients import combiner_gradients, flow_gradients
from dmm_fast.triton.sums import incoming as entries_of_sum


def flow_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    weights: list[Tensor],
    flow_weights: list[Tensor],
    lengths: Tensor,
    keep_g: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, ``log_det [P, B]``, and ``g [P, B, T, H]`` in float32.

    All are zero past the end of each row. ``g`` is for the backward pass, and empty without ``keep_g``.
    """
    P, B, T, Z = eps.shape
    K, F, _ = flow_weights[0].shape
    H, rows = h.shape[-1], P * B
    w = CombinerWeights(*scan.stored_by_inputs(weights))
    flows = FlowWeights(*scan.stored_by_inputs(flow_weights))
    z, loc, pre_scale = (eps.new_empty((P, B, T, Z)) for _ in range(3))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    log_scales = eps.new_zeros((P, B, Z), dtype=torch.float64)
    if z.numel():
        c, a = (eps.new_empty((rows, width), dtype=torch.float32) for width in (H, F))
        # The input of each flow, and the latents at the end.
        x = scan.started(z_q_0, eps, copies=K + 1)
        steps, options = steps_of(eps, lengths), {"size": constants(Sizes(Z, H, K, F))}
        of_combine = (w, x[K], rows_of(h), c, g if keep_g else None, steps)
        of_draw = (w, c, rows_of(eps), x, Drawn(None, loc, pre_scale), steps)
        of_transform = (flows, x, a, z, log_scales, steps)
        with on_device_of(eps):
            combine = scan.launcher(combiner_steps.combine_kernel, rows, H, Z, *of_combine, **options)
            draw = scan.launcher(combiner_steps.draw_kernel, rows, Z, H, *of_draw, **options)
            hide = scan.launcher(flow_steps.hide_kernel, rows, F, Z, flows, x, a, steps, **options)
            transform = scan.launcher(flow_steps.transform_kernel, rows, Z, F, *of_transform, **options)
            for t in range(T):
                combine(t)
                draw(t)
                for k in range(K):
                    hide(t, k)
                    transform(t, k)
    return z, loc, pre_scale, log_scales.sum(-1).to(eps.dtype), g


def flow_scan_backward(
    dz: Tensor,
    dloc: Tensor,
    dpre_scale: Tensor,
    dlog_det: Tensor,
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    g: Tensor,
    weights: list[Tensor],
    flow_weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """``dh, deps, dz_q_0`` and the gradients of the combiner's weights and of the flows'."""
    P, B, T, Z = eps.shape
    K, F, _ = flow_weights[0].shape
    H, rows = h.shape[-1], P * B
    g, out = g.contiguous(), combiner_steps.gradients_for(h, eps)
    passed = flow_steps.passed_flows(loc, pre_scale, eps, flow_weights, lengths)
    of_flows = flow_steps.gradients_for(passed)
    if rows:
        w, flows = combiner_steps.backward_weights(weights), flow_steps.backward_weights(flow_weights)
        incoming = combiner_steps.Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
        steps, options = steps_of(eps, lengths), {"size": constants(Sizes(Z, H, K, F))}
        dsum = entries_of_sum(dlog_det)
        of_latents = (w, incoming, dsum, passed, out, of_flows, steps)
        drawn = rows_of(eps), rows_of(pre_scale)
        of_inputs = (flows.w_in, incoming, dsum, *drawn, passed, out, of_flows, steps)
        of_hide = (flows.w_out, passed, of_flows, steps)
        with on_device_of(eps):
            latents = scan.launcher(latents_bwd_kernel, rows, Z, H, *of_latents, **options)
            hide = scan.launcher(flow_steps.hide_bwd_kernel, rows, F, 2 * Z, *of_hide, **options)
            inputs = scan.launcher(inputs_bwd_kernel, rows, Z, F, *of_inputs, **options)
            combine = scan.launcher(
                combiner_steps.combine_bwd_kernel, rows, H, 2 * Z, w, g, out, steps, **options
            )
            for t in reversed(range(T)):
                latents(t)
                for k in reversed(range(K)):
                    hide(t, k)
                    inputs(t, k)
                combine(t)
            scan.launcher(combiner_steps.starts_bwd_kernel, rows, Z, H, w, out, steps, **options)()
    dz_q_0, *dweights = combiner_gradients(out.da, out.dout, out.dz_q_0, g, h, z, z_q_0, lengths)
    dflows = flow_gradients(of_flows.da, of_flows.dout, passed.x, passed.a, lengths, eps.dtype)
    return out.dh, out.deps, dz_q_0, dweights, dflows


@triton.jit
def gradient_of_sum(dsum, steps, row, exists):  # type: ignore[no-untyped-def]
    """The gradient of the log-determinants of rows, from entries of ``dsum [P, B]``."""
    p, b = row // decoded(steps.batch), row % decoded(steps.batch)
    return tl.load(entry_at(dsum, p, b, 0), mask=exists, other=0.0).to(tl.float32)


@scan.step_kernel
def latents_bwd_kernel(  # type: ignore[no-untyped-def]
    w, incoming, dsum, passed, out, of_flows, steps, t, blocks, size
):
    """Compute ``dout`` of the last flow from the gradient of a tile of the latents of step ``t``.

    Reads the gradients ``incoming`` and ``dsum`` [P, B], the combiner's ``da`` of the step after, and the
    activations ``passed``.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    dz = combiner_steps.by_latents(w, incoming, out, steps, row, t, length, columns, size, blocks)
    last_flow = scan.place_of(steps, row, t) * size.K + size.K - 1
    dlog_det = gradient_of_sum(dsum, steps, row, exists)
    flow_steps.transform_backward(dz, dlog_det, passed, of_flows, last_flow, columns, t < length, size.Z)


@scan.step_kernel
def inputs_bwd_kernel(  # type: ignore[no-untyped-def]
    w_in, incoming, dsum, eps, pre_scale, passed, out, of_flows, steps, t, k, blocks, size
):
    """Compute ``dout`` of flow ``k - 1``, or of the combiner if k = 0, from ``da`` of flow ``k``."""
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    active, at_flow = t < length, scan.place_of(steps, row, t) * size.K + k
    dx = flow_steps.gradient_by_inputs(w_in, passed, of_flows, at_flow, k, columns, active, size, blocks)
    if k > 0:
        dlog_det = gradient_of_sum(dsum, steps, row, exists)
        flow_steps.transform_backward(dx, dlog_det, passed, of_flows, at_flow - 1, columns, active, size.Z)
    else:
        combiner_steps.draw_backward(
            dx, incoming, eps, pre_scale, out, steps, row, t, columns, exists, active, size
        )
