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

from dmm_fast.reference import FLOW_LOG_SCALES, CombinerWeights, FlowWeights
from dmm_fast.triton import scan
from dmm_fast.triton.combiner_steps import (
    Incoming,
    backward_weights,
    by_latents,
    combine,
    combine_backward,
    draw,
    draw_backward,
    gradients_for,
    layer_constants,
    starts_backward,
    store_padded,
)
from dmm_fast.triton.common import exp, softplus
from dmm_fast.triton.layers import copy_rows, linear, linear_backward, relu
from dmm_fast.triton.rows import (
    at,
    block_of_places,
    constants,
    decoded,
    entry_at,
    launch,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
)
from dmm_fast.triton.step_gradients import combiner_gradients, flow_gradients
from dmm_fast.triton.sums import incoming as entries_of_sum

LEAST, MOST = tl.constexpr(FLOW_LOG_SCALES[0]), tl.constexpr(FLOW_LOG_SCALES[1])


class Sizes(NamedTuple):
    """Latents, hidden units of the combiner, flows, and hidden units of a flow."""

    Z: Any
    H: Any
    K: Any
    F: Any


class Drawn(NamedTuple):
    """The results of the forward pass: ``[P, B, T, Z]``, ``log_det [P, B]``, ``g [P, B, T, H]`` or None."""

    z: Any
    loc: Any
    pre_scale: Any
    log_det: Any
    g: Any


class Passed(NamedTuple):
    """What the flows of all steps were given, and what they made of it, in float32, at valid steps only."""

    x: Any  # [P, B, T, K, Z]
    a: Any  # [P, B, T, K, F]
    scale: Any  # [P, B, T, K, Z]


class FlowBackwardWeights(NamedTuple):
    """Weights that gradients pass: ``w_in [K, F, Z]``, and ``w_out [K, 2 Z, F]``, w_mean over w_log_scale."""

    w_in: Any
    w_out: Any


class FlowGradients(NamedTuple):
    """The gradients that those of the flows' weights are made of, in float32, at valid steps only.

    ``da [P, B, T, K, F]`` is the one by what goes into the relu, ``dout [P, B, T, K, 2 Z]`` the one by mean
    and by log_scale.
    """

    da: Any
    dout: Any


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
    g, out = g.contiguous(), gradients_for(h, eps)
    passed = passed_flows(loc, pre_scale, eps, flow_weights, lengths)
    w_in, _, w_mean, _, w_log_scale, _ = flow_weights
    flows = FlowBackwardWeights(w_in.contiguous(), torch.cat([w_mean, w_log_scale], dim=1))
    of_flows = FlowGradients(torch.empty_like(passed.a), passed.x.new_empty((*passed.x.shape[:-1], 2 * Z)))
    incoming = Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
    saved = (rows_of(eps), rows_of(pre_scale), g, passed, steps_of(eps, lengths))
    given = (backward_weights(weights), flows, incoming, entries_of_sum(dlog_det), *saved, out, of_flows)
    sizes = _constants(Sizes(Z, h.shape[-1], *w_in.shape[:2]))
    scan.launch(flow_scan_bwd_kernel, P * B, eps, *given, **sizes)
    dz_q_0, *dweights = combiner_gradients(out.da, out.dout, out.dz_q_0, g, h, z, z_q_0, lengths)
    dflows = flow_gradients(of_flows.da, of_flows.dout, passed.x, passed.a, lengths, eps.dtype)
    return out.dh, out.deps, dz_q_0, dweights, dflows


def passed_flows(
    loc: Tensor, pre_scale: Tensor, eps: Tensor, flow_weights: list[Tensor], lengths: Tensor
) -> Passed:
    """The flows of all steps, which need no scan where ``loc`` and ``pre_scale`` are known."""
    P, B, T, Z = eps.shape
    K, F, _ = flow_weights[0].shape
    shapes = ((P, B, T, K, width) for width in (Z, F, Z))
    passed = Passed(*(eps.new_empty(shape, dtype=torch.float32) for shape in shapes))
    flows = FlowWeights(*(weight.contiguous() for weight in flow_weights))
    given = (flows, rows_of(loc), rows_of(pre_scale), rows_of(eps), steps_of(eps, lengths), passed)
    to_units, from_units = scan.layer_blocks(F, Z, 64, "tf32x3"), scan.layer_blocks(Z, F, 64, "tf32x3")
    size = constants(Sizes(Z, 0, K, F))
    launch(passed_flows_kernel, P * B * T, eps, *given, size=size, to_units=to_units, from_units=from_units)
    return passed


def _constants(size: Sizes) -> dict[str, tuple[Any, ...]]:
    """The sizes, and the blocks of the combiner's layers and of those to a flow's units and from them."""
    return {
        "size": constants(size),
        **layer_constants(size.H, size.Z),
        "to_units": scan.layer_blocks(size.F, size.Z, 128),
        "from_units": scan.layer_blocks(size.Z, size.F, 32),
    }


@triton.jit
def flow_at(w, k, size):  # type: ignore[no-untyped-def]
    """The weights of flow k."""
    Z, F = size.Z, size.F
    return FlowWeights(
        w.w_in + k * F * Z,
        w.b_in + k * F,
        w.w_mean + k * Z * F,
        w.b_mean + k * Z,
        w.w_log_scale + k * Z * F,
        w.b_log_scale + k * Z,
    )


@triton.jit
def hide(w, x, a, valid, size, blocks):  # type: ignore[no-untyped-def]
    """The first half of a flow: from the rows ``x`` to all its units, which go to the rows ``a``."""
    for n in range(0, size.F, blocks.N):
        units = n + tl.arange(0, blocks.N)
        unit = relu(linear(x, valid, size.Z, w.w_in, w.b_in, units, size.F, blocks))
        store_row(a, units, size.F, valid, unit)


@triton.jit
def transform(w, x, a, columns, valid, size, blocks):  # type: ignore[no-untyped-def]
    """The second half: the given columns of what the flow makes of x, of log_scale and of its exponential."""
    Z, F = size.Z, size.F
    log_scale = linear(a, valid, F, w.w_log_scale, w.b_log_scale, columns, Z, blocks)
    log_scale = tl.where(log_scale < LEAST, LEAST, tl.where(log_scale > MOST, MOST, log_scale))  # NaN stays
    scale = exp(log_scale)
    mean = linear(a, valid, F, w.w_mean, w.b_mean, columns, Z, blocks)
    return scale * load_row(x, columns, Z, valid) + mean, log_scale, scale


@triton.jit
def transform_backward(dy, dlog_det, passed, out, place, columns, valid, Z):  # type: ignore[no-untyped-def]
    """The first half of a flow back: the given columns of ``dout``, from those of ``dy``, by its result.

    ``place`` are the steps of that flow among all flows' steps, ``dlog_det`` [rows].
    """
    x = load_row(passed.x + place * Z, columns, Z, valid)
    scale = load_row(passed.scale + place * Z, columns, Z, valid)
    store_row(out.dout + place * 2 * Z, columns, Z, valid, dy)
    store_row(out.dout + place * 2 * Z + Z, columns, Z, valid, dy * x * scale + dlog_det[:, None])


@triton.jit
def hide_backward(w_out, passed, out, place, valid, size, blocks):  # type: ignore[no-untyped-def]
    """The second half back: from ``dout`` to all units of ``da``."""
    Z, F = size.Z, size.F
    for n in range(0, F, blocks.N):
        units = n + tl.arange(0, blocks.N)
        da = linear_backward(out.dout + place * 2 * Z, valid, 2 * Z, w_out, units, F, blocks)
        a = load_row(passed.a + place * F, units, F, valid)
        store_row(out.da + place * F, units, F, valid, tl.where(a > 0.0, da, 0.0))


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
        combine(w, z_row, h_here, c_row, out.g, place, exists, active, size, to_hidden)
        tl.debug_barrier()
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            noise = scan.at_step(eps_row, eps, t)
            x, loc, pre_scale = draw(w, c_row, noise, columns, active, size, to_latents)
            store_row(x_row, columns, Z, active, x)
            store_padded(out.loc, place, columns, Z, exists, active, loc)
            store_padded(out.pre_scale, place, columns, Z, exists, active, pre_scale)
        k = longest * 0
        while k < size.K:
            flow, x_here = flow_at(flows, k, size), x_row + k * Z
            tl.debug_barrier()
            hide(flow, x_here, a_row, active, size, to_units)
            tl.debug_barrier()
            for n in range(0, Z, from_units.N):
                columns = n + tl.arange(0, from_units.N)
                y, log_scale, _ = transform(flow, x_here, a_row, columns, active, size, from_units)
                store_row(x_here + Z, columns, Z, active, y)
                if k == size.K - 1:
                    store_padded(out.z, place, columns, Z, exists, active, y)
                total += tl.where(active[:, None] & (columns < Z)[None, :], log_scale, 0.0)
            k += 1
        t += 1
    tl.store(out.log_det + row, tl.sum(total, 1).to(out.log_det.dtype.element_ty), mask=exists)


@rowwise_kernel
def passed_flows_kernel(  # type: ignore[no-untyped-def]
    w, loc, pre_scale, eps, steps, passed, first, size, to_units, from_units, BLOCK_M: tl.constexpr
):
    """A block of valid steps: what :class:`Passed` has, from loc, pre_scale and eps [P, B, T, Z]."""
    Z, F = size.Z, size.F
    row, step, valid = places(steps, block_of_places(first, BLOCK_M))
    first_flow = (row * decoded(steps.steps) + step) * size.K
    for n in range(0, Z, from_units.N):
        columns = n + tl.arange(0, from_units.N)
        noise = load_row(at(eps, steps, row, step), columns, Z, valid)
        s = load_row(at(pre_scale, steps, row, step), columns, Z, valid)
        x = load_row(at(loc, steps, row, step), columns, Z, valid) + softplus(s) * noise
        store_row(passed.x + first_flow * Z, columns, Z, valid, x)

    k = tl.full((), 0, tl.int64)
    while k < size.K:
        place = first_flow + k
        flow, x, a = flow_at(w, k, size), passed.x + place * Z, passed.a + place * F
        tl.debug_barrier()
        hide(flow, x, a, valid, size, to_units)
        tl.debug_barrier()
        for n in range(0, Z, from_units.N):
            columns = n + tl.arange(0, from_units.N)
            y, _, scale = transform(flow, x, a, columns, valid, size, from_units)
            store_row(passed.scale + place * Z, columns, Z, valid, scale)
            if k < size.K - 1:
                store_row(x + Z, columns, Z, valid, y)
        k += 1


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
    and what :class:`Passed` has at valid steps, and the weights of the combiner and of the flows. Writes the
    combiner's gradients ``out`` and the :class:`FlowGradients` ``of_flows``: through them a half of a step
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
            dz = by_latents(w, out.da + (place + 1) * H, carried, columns, size, to_latents)
            dz += load_row(scan.at_step(dz_row, incoming.dz, t), columns, Z, active)
            transform_backward(dz, dsum, passed, of_flows, last_flow, columns, active, Z)
        k = longest * 0 + size.K - 1
        while k >= 0:
            tl.debug_barrier()
            at_flow = place * size.K + k
            w_in, w_out = flows.w_in + k * F * Z, flows.w_out + k * 2 * Z * F
            hide_backward(w_out, passed, of_flows, at_flow, active, size, to_units)
            tl.debug_barrier()
            for n in range(0, Z, from_units.N):
                columns = n + tl.arange(0, from_units.N)
                dx = linear_backward(of_flows.da + at_flow * F, active, F, w_in, columns, Z, from_units)
                dmean = load_row(of_flows.dout + at_flow * 2 * Z, columns, Z, active)
                dx += dmean * load_row(passed.scale + at_flow * Z, columns, Z, active)
                if k > 0:
                    transform_backward(dx, dsum, passed, of_flows, at_flow - 1, columns, active, Z)
                else:
                    draw_backward(
                        dx,
                        scan.at_step(dloc_row, incoming.dloc, t),
                        scan.at_step(dpre_scale_row, incoming.dpre_scale, t),
                        scan.at_step(pre_scale_row, pre_scale, t),
                        scan.at_step(eps_row, eps, t),
                        *(out, place, columns, exists, active, size),
                    )
            k -= 1
        tl.debug_barrier()
        combine_backward(w, g, out, place, exists, active, size, to_hidden)
        t -= 1

    starts_backward(w, steps, row, exists, length, out, size, to_latents)
