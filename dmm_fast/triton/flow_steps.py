"""Halves of a flow, forward and backward, for scans with flows; and the flows of all steps at once.

In the forward pass the weights are stored by inputs, see :func:`dmm_fast.triton.scan.stored_by_inputs`.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import FLOW_LOG_SCALES, FlowWeights
from dmm_fast.triton import scan
from dmm_fast.triton.common import exp, input_precision, softplus
from dmm_fast.triton.layers import linear_backward, relu
from dmm_fast.triton.rows import (
    at,
    block_of_places,
    constants,
    decoded,
    launch,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
    width_block,
)

LEAST, MOST = tl.constexpr(FLOW_LOG_SCALES[0]), tl.constexpr(FLOW_LOG_SCALES[1])


class Sizes(NamedTuple):
    """Latents, hidden units of the combiner, flows, and hidden units of a flow."""

    Z: Any
    H: Any
    K: Any
    F: Any


class Passed(NamedTuple):
    """Inputs, activations and scales of the flows of all steps, in float32, at valid steps only."""

    x: Any  # [P, B, T, K, Z]
    a: Any  # [P, B, T, K, F]
    scale: Any  # [P, B, T, K, Z]


class BackwardWeights(NamedTuple):
    """The weights for a backward pass: ``w_in [K, F, Z]``, and ``w_out [K, 2 Z, F]``, both heads stacked."""

    w_in: Any
    w_out: Any


class Gradients(NamedTuple):
    """The factors of the gradients of the flows' weights, in float32, at valid steps only.

    ``da [P, B, T, K, F]`` is the gradient of the argument of the ReLU, ``dout [P, B, T, K, 2 Z]`` that of
    mean and log_scale.
    """

    da: Any
    dout: Any


def layer_blocks(outputs: int, inputs: int) -> scan.Blocks:
    """The block sizes of a layer for all steps at once; the block of rows is that of the launch."""
    return constants(scan.Blocks(0, width_block(outputs, 64), width_block(inputs, 64), input_precision()))


def backward_weights(flow_weights: list[Tensor]) -> BackwardWeights:
    """The flows' weights for a backward kernel."""
    w_in, _, w_mean, _, w_log_scale, _ = flow_weights
    return BackwardWeights(w_in.contiguous(), torch.cat([w_mean, w_log_scale], dim=1))


def gradients_for(passed: Passed) -> Gradients:
    """Allocate the gradients."""
    *steps, Z = passed.x.shape
    return Gradients(passed.a.new_empty(passed.a.shape), passed.x.new_empty((*steps, 2 * Z)))


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
def hidden(w, x, units, valid, size, blocks):  # type: ignore[no-untyped-def]
    """The first half of a flow: the given units from the rows ``x``."""
    return relu(scan.linear(x, valid, size.Z, w.w_in, w.b_in, units, size.F, blocks))


@triton.jit
def transformed(w, x, a, columns, valid, size, blocks):  # type: ignore[no-untyped-def]
    """The second half: the given columns of the flow's result, of log_scale and of its exponential."""
    Z, F = size.Z, size.F
    log_scale, mean = scan.linear_pair(
        a, valid, F, w.w_log_scale, w.b_log_scale, w.w_mean, w.b_mean, columns, Z, blocks
    )
    log_scale = tl.where(log_scale < LEAST, LEAST, tl.where(log_scale > MOST, MOST, log_scale))  # keeps NaN
    scale = exp(log_scale)
    return scale * load_row(x, columns, Z, valid) + mean, log_scale, scale


@triton.jit
def transform_backward(dy, dlog_det, passed, out, place, columns, valid, Z):  # type: ignore[no-untyped-def]
    """The first half of a flow's backward pass: the given columns of ``dout`` from those of ``dy``.

    ``dy`` is the gradient of the flow's result, ``dlog_det`` [rows] that of its log-determinant; ``place``
    are the indices of the flow's steps among those of all flows.
    """
    x = load_row(passed.x + place * Z, columns, Z, valid)
    scale = load_row(passed.scale + place * Z, columns, Z, valid)
    store_row(out.dout + place * 2 * Z, columns, Z, valid, dy)
    store_row(out.dout + place * 2 * Z + Z, columns, Z, valid, dy * x * scale + dlog_det[:, None])


@scan.step_kernel
def hide_kernel(flows, x, a, steps, t, k, blocks, size):  # type: ignore[no-untyped-def]
    """Step ``t``, flow ``k``: write a tile of the flow's units for ``x [K + 1, P B, Z]`` to ``a``."""
    row, _, length, units = scan.tile_of_step(steps, blocks)
    active, x_row = t < length, x + (k * scan.row_count(steps) + row) * size.Z
    unit = hidden(flow_at(flows, k, size), x_row, units, active, size, blocks)
    store_row(a + row * size.F, units, size.F, active, unit)


@scan.step_kernel
def transform_kernel(flows, x, a, z, log_scales, steps, t, k, blocks, size):  # type: ignore[no-untyped-def]
    """Compute a tile of the next flow's input, or of z [P, B, T, Z], from the units ``a [P B, F]``.

    The latents' log_scale is added to ``log_scales [P B, Z]``.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    active, Z, next_flow = t < length, size.Z, scan.row_count(steps) * size.Z
    x_row = x + k * next_flow + row * Z
    flow, a_row = flow_at(flows, k, size), a + row * size.F
    y, log_scale, _ = transformed(flow, x_row, a_row, columns, active, size, blocks)
    store_row(x_row + next_flow, columns, Z, active, y)
    if k == size.K - 1:
        scan.store_padded(z, scan.place_of(steps, row, t), columns, Z, exists, active, y)
    inside = active[:, None] & (columns < Z)[None, :]
    total = log_scales + row[:, None] * Z + columns[None, :]
    # In float64, since each sum has as many terms as there are steps and flows.
    tl.store(total, tl.load(total, mask=inside, other=0.0) + log_scale.to(tl.float64), mask=inside)


@scan.step_kernel
def hide_bwd_kernel(w_out, passed, out, steps, t, k, blocks, size):  # type: ignore[no-untyped-def]
    """Compute a tile of ``da`` from ``dout`` of step ``t`` and flow ``k``."""
    row, _, length, units = scan.tile_of_step(steps, blocks)
    Z, F, active = size.Z, size.F, t < length
    place = scan.place_of(steps, row, t) * size.K + k
    da = linear_backward(out.dout + place * 2 * Z, active, 2 * Z, w_out + k * 2 * Z * F, units, F, blocks)
    a = load_row(passed.a + place * F, units, F, active)
    store_row(out.da + place * F, units, F, active, tl.where(a > 0.0, da, 0.0))


@triton.jit
def gradient_by_inputs(w_in, passed, out, place, k, columns, active, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of the gradient of the input of flow ``k``; ``place`` indexes steps of all flows."""
    Z, F = size.Z, size.F
    dx = linear_backward(out.da + place * F, active, F, w_in + k * F * Z, columns, Z, blocks)
    dmean = load_row(out.dout + place * 2 * Z, columns, Z, active)
    return dx + dmean * load_row(passed.scale + place * Z, columns, Z, active)


@rowwise_kernel
def passed_flows_kernel(  # type: ignore[no-untyped-def]
    w, loc, pre_scale, eps, steps, passed, first, size, to_units, from_units, BLOCK_M: tl.constexpr
):
    """A block of valid steps: compute :class:`Passed` from loc, pre_scale and eps [P, B, T, Z]."""
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
        for n in range(0, F, to_units.N):
            units = n + tl.arange(0, to_units.N)
            store_row(a, units, F, valid, hidden(flow, x, units, valid, size, to_units))
        tl.debug_barrier()
        for n in range(0, Z, from_units.N):
            columns = n + tl.arange(0, from_units.N)
            y, _, scale = transformed(flow, x, a, columns, valid, size, from_units)
            store_row(passed.scale + place * Z, columns, Z, valid, scale)
            if k < size.K - 1:
                store_row(x + Z, columns, Z, valid, y)
        k += 1


def passed_flows(
    loc: Tensor, pre_scale: Tensor, eps: Tensor, flow_weights: list[Tensor], lengths: Tensor
) -> Passed:
    """The flows of all steps at once, without a scan, since ``loc`` and ``pre_scale`` are known."""
    P, B, T, Z = eps.shape
    K, F, _ = flow_weights[0].shape
    shapes = ((P, B, T, K, width) for width in (Z, F, Z))
    passed = Passed(*(eps.new_empty(shape, dtype=torch.float32) for shape in shapes))
    flows = FlowWeights(*scan.stored_by_inputs(flow_weights))
    given = (flows, rows_of(loc), rows_of(pre_scale), rows_of(eps), steps_of(eps, lengths), passed)
    blocks: dict[str, Any] = {"to_units": layer_blocks(F, Z), "from_units": layer_blocks(Z, F)}
    launch(passed_flows_kernel, P * B * T, eps, *given, size=constants(Sizes(Z, 0, K, F)), **blocks)
    return passed
