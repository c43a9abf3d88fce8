"""Drawing the posterior chain z_{1:T} through normalizing flows, forward in time, and its gradient.

A step has the two halves of the combiner's and two of each of K flows, a barrier before each. What the flows
were given and made of it is computed once more at all steps in a launch of its own before the backward scan:
within that scan it would double what a step reads of each flow's weights, from 30,000 numbers to 60,000 at
100 latents and units beside the combiner's 180,000, and take 4 K + 2 barriers instead of 2 K + 2.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import CombinerWeights, FlowWeights
from dmm_fast.triton import combiner_steps, flow_steps, scan
from dmm_fast.triton.flow_steps import Sizes
from dmm_fast.triton.layers import copy_rows, linear_backward
from dmm_fast.triton.rows import at, constants, decoded, entry_at, load_row, rows_of, steps_of, store_row
from dmm_fast.triton.step_gradients import combiner_gradients, flow_gradients
from dmm_fast.triton.sums import incoming as entries_of_sum


class Drawn(NamedTuple):
    """The results of the forward pass: ``[P, B, T, Z]``, ``log_det [P, B]``, ``g [P, B, T, H]`` or None."""

    z: Any
    loc: Any
    pre_scale: Any
    log_det: Any
    g: Any


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

    All are zero past the end of each row. Without ``keep_g`` the last, for the backward, is empty.
    """
    P, B, T, Z = eps.shape
    K, F, _ = flow_weights[0].shape
    H = h.shape[-1]
    w = CombinerWeights(*(weight.contiguous() for weight in weights))
    flows = FlowWeights(*(weight.contiguous() for weight in flow_weights))
    z, loc, pre_scale = (eps.new_empty((P, B, T, Z)) for _ in range(3))
    log_det = eps.new_empty((P, B))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    out = Drawn(z, loc, pre_scale, log_det, g if keep_g else None)
    state = eps.new_empty((P * B, H + F + (K + 1) * Z), dtype=torch.float32)
    given = (rows_of(h), rows_of(eps), rows_of(z_q_0), steps_of(eps, lengths))
    sizes = _constants(Sizes(Z, H, K, F))
    scan.launch(flow_scan_fwd_kernel, P * B, eps, w, flows, *given, out, state, **sizes)
    return z, loc, pre_scale, log_det, g


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
    P, B, _, Z = eps.shape
    g, out = g.contiguous(), combiner_steps.gradients_for(h, eps)
    passed = flow_steps.passed_flows(loc, pre_scale, eps, flow_weights, lengths)
    flows = flow_steps.backward_weights(flow_weights)
    of_flows = flow_steps.gradients_for(passed)
    incoming = combiner_steps.Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
    saved = (rows_of(eps), rows_of(pre_scale), g, passed, steps_of(eps, lengths))
    w = combiner_steps.backward_weights(weights)
    given = (w, flows, incoming, entries_of_sum(dlog_det), *saved, out, of_flows)
    sizes = _constants(Sizes(Z, h.shape[-1], *flow_weights[0].shape[:2]))
    scan.launch(flow_scan_bwd_kernel, P * B, eps, *given, **sizes)
    dz_q_0, *dweights = combiner_gradients(out.da, out.dout, out.dz_q_0, g, h, z, z_q_0, lengths)
    dflows = flow_gradients(of_flows.da, of_flows.dout, passed.x, passed.a, lengths, eps.dtype)
    return out.dh, out.deps, dz_q_0, dweights, dflows


def _constants(size: Sizes) -> dict[str, tuple[Any, ...]]:
    """The sizes, and the blocks of the combiner's layers and of those to a flow's units and from them."""
    return {
        "size": constants(size),
        **combiner_steps.layer_constants(size.H, size.Z),
        "to_units": scan.layer_blocks(size.F, size.Z, 128),
        "from_units": scan.layer_blocks(size.Z, size.F, 32),
    }


@triton.jit
def flow_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    w,
    flows,
    h,
    eps,
    z_q_0,
    steps,
    out,
    state,
    size,
    to_hidden,
    to_latents,
    to_units,
    from_units,
    BLOCK_M: tl.constexpr,
):
    """A block of rows from the first step to the end of its longest.

    Reads h [P, B, T, H] and eps [P, B, T, Z] at valid steps, z_q_0 [P, B, Z], the combiner's weights ``w``
    and those of the ``flows``. Writes all of the :class:`Drawn` tensors ``out``, and to ``state [P B, H + F +
    (K + 1) Z]`` what a half of a step leaves for the next: the combiner's hidden units, a flow's, what each
    flow is given, and the latents. ``to_hidden`` and ``to_latents`` are the blocks of the combiner's layers,
    ``to_units`` and ``from_units`` those of the flows'.
    """
    Z, H, F = size.Z, size.H, size.F
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    h_row, eps_row = at(h, steps, row, 0), at(eps, steps, row, 0)
    c_row = state + row * (H + F + (size.K + 1) * Z)
    a_row = c_row + H
    x_row = a_row + F
    z_row = x_row + size.K * Z
    copy_rows(at(z_q_0, steps, row, 0), exists, z_row, Z, to_latents)
    scan.clear_past_longest(out.z, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.loc, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.pre_scale, steps, row, exists, longest, Z, to_latents.N)
    if out.g is not None:
        scan.clear_past_longest(out.g, steps, row, exists, longest, H, to_hidden.N)

    total = tl.zeros((BLOCK_M, from_units.N), tl.float32)
    t = longest * 0
    while t < longest:
        active = t < length
        place = row * decoded(steps.steps) + t
        tl.debug_barrier()
        h_here = scan.at_step(h_row, h, t)
        combiner_steps.combine(w, z_row, h_here, c_row, out.g, place, exists, active, size, to_hidden)
        tl.debug_barrier()
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            noise = scan.at_step(eps_row, eps, t)
            x, loc, pre_scale = combiner_steps.draw(w, c_row, noise, columns, active, size, to_latents)
            store_row(x_row, columns, Z, active, x)
            combiner_steps.store_padded(out.loc, place, columns, Z, exists, active, loc)
            combiner_steps.store_padded(out.pre_scale, place, columns, Z, exists, active, pre_scale)
        k = longest * 0
        while k < size.K:
            flow, x_here = flow_steps.flow_at(flows, k, size), x_row + k * Z
            tl.debug_barrier()
            flow_steps.hide(flow, x_here, a_row, active, size, to_units)
            tl.debug_barrier()
            for n in range(0, Z, from_units.N):
                columns = n + tl.arange(0, from_units.N)
                y, log_scale, _ = flow_steps.transform(flow, x_here, a_row, columns, active, size, from_units)
                store_row(x_here + Z, columns, Z, active, y)
                if k == size.K - 1:
                    combiner_steps.store_padded(out.z, place, columns, Z, exists, active, y)
                total += tl.where(active[:, None] & (columns < Z)[None, :], log_scale, 0.0)
            k += 1
        t += 1
    tl.store(out.log_det + row, tl.sum(total, 1).to(out.log_det.dtype.element_ty), mask=exists)


@triton.jit
def flow_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    flows,
    incoming,
    dlog_det,
    eps,
    pre_scale,
    g,
    passed,
    steps,
    out,
    of_flows,
    size,
    to_hidden,
    to_latents,
    to_units,
    from_units,
    BLOCK_M: tl.constexpr,
):
    """A block of rows from the end of its longest back to what its chains started from.

    Reads the gradients ``incoming`` and ``dlog_det`` [P, B], eps and pre_scale [P, B, T, Z], g [P, B, T, H]
    and what ``passed`` has at valid steps, and the weights of the combiner and of the flows. Writes the
    combiner's gradients ``out`` and the flows' ``of_flows``: through them a half of a step
    has what the one before it left. The blocks are those of the forward kernel.
    """
    Z, H, F = size.Z, size.H, size.F
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    dz_row, dloc_row = at(incoming.dz, steps, row, 0), at(incoming.dloc, steps, row, 0)
    dpre_scale_row = at(incoming.dpre_scale, steps, row, 0)
    eps_row, pre_scale_row = at(eps, steps, row, 0), at(pre_scale, steps, row, 0)
    p, b = row // decoded(steps.batch), row % decoded(steps.batch)
    dsum = tl.load(entry_at(dlog_det, p, b, 0), mask=exists, other=0.0).to(tl.float32)
    scan.clear_past_longest(out.dh, steps, row, exists, longest, H, to_hidden.N)
    scan.clear_past_longest(out.deps, steps, row, exists, longest, Z, to_latents.N)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active, carried = t < length, t + 1 < length  # nothing comes back into a row's last step
        place = row * decoded(steps.steps) + t
        last_flow = place * size.K + size.K - 1
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            dz = combiner_steps.by_latents(w, out.da + (place + 1) * H, carried, columns, size, to_latents)
            dz += load_row(scan.at_step(dz_row, incoming.dz, t), columns, Z, active)
            flow_steps.transform_backward(dz, dsum, passed, of_flows, last_flow, columns, active, Z)
        k = longest * 0 + size.K - 1
        while k >= 0:
            tl.debug_barrier()
            at_flow = place * size.K + k
            w_in, w_out = flows.w_in + k * F * Z, flows.w_out + k * 2 * Z * F
            flow_steps.hide_backward(w_out, passed, of_flows, at_flow, active, size, to_units)
            tl.debug_barrier()
            for n in range(0, Z, from_units.N):
                columns = n + tl.arange(0, from_units.N)
                dx = linear_backward(of_flows.da + at_flow * F, active, F, w_in, columns, Z, from_units)
                dmean = load_row(of_flows.dout + at_flow * 2 * Z, columns, Z, active)
                dx += dmean * load_row(passed.scale + at_flow * Z, columns, Z, active)
                if k > 0:
                    flow_steps.transform_backward(dx, dsum, passed, of_flows, at_flow - 1, columns, active, Z)
                else:
                    combiner_steps.draw_backward(
                        dx,
                        scan.at_step(dloc_row, incoming.dloc, t),
                        scan.at_step(dpre_scale_row, incoming.dpre_scale, t),
                        scan.at_step(pre_scale_row, pre_scale, t),
                        scan.at_step(eps_row, eps, t),
                        *(out, place, columns, exists, active, size),
                    )
            k -= 1
        tl.debug_barrier()
        combiner_steps.combine_backward(w, g, out, place, exists, active, size, to_hidden)
        t -= 1

    combiner_steps.starts_backward(w, steps, row, exists, length, out, size, to_latents)
