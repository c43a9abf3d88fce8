"""The inference network's recurrence, backward or forward in time, and its gradient: one launch per step."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import scan
from dmm_fast.triton.common import on_device_of, tanh
from dmm_fast.triton.layers import linear_backward, relu
from dmm_fast.triton.rows import at, decoded, load_row, rows_of, steps_of, store_row
from dmm_fast.triton.step_gradients import rnn_gradients


def rnn_scan(
    x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> Tensor:
    """``h [P, B, T, H]``, zero past the end of each row."""
    P, B, T, H = x_proj.shape
    h = x_proj.new_empty((P, B, T, H))
    if h.numel():
        # Rows start at different steps, so a row may read either state first.
        state, options = scan.started(h_0, h, copies=2), _constants(H, nonlinearity, direction)
        given = (w_hh.mT.contiguous(), rows_of(x_proj), steps_of(x_proj, lengths), h, state)
        with on_device_of(h):
            step = scan.launcher(rnn_step_fwd_kernel, P * B, H, H, *given, **options)
            for t in reversed(range(T)):
                step(t)
    return h


def rnn_scan_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx_proj [P, B, T, H], dw_hh [H, H]``, and dh_0 with the shape of h_0."""
    P, B, T, H = h.shape
    dx_proj, dh_0 = h.new_empty((P, B, T, H)), h.new_empty((P, B, H))
    if dh_0.numel():
        options = _constants(H, nonlinearity, direction)
        state = h.new_empty((2, P * B, H), dtype=torch.float32)
        given = (w_hh.contiguous(), rows_of(dh), rows_of(h), steps_of(h, lengths), dx_proj, dh_0, state)
        with on_device_of(h):
            step = scan.launcher(rnn_step_bwd_kernel, P * B, H, H, *given, **options)
            for t in range(T + 1):
                step(t)
    return dx_proj, *rnn_gradients(dx_proj, dh_0, h, h_0, lengths, direction)


def _constants(H: int, nonlinearity: str, direction: str) -> dict[str, Any]:
    return {"H": H, "TANH": nonlinearity == "tanh", "REVERSED": direction == "forward"}


@triton.jit
def place(t, length, REVERSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The index in memory of step ``t`` of rows, reversed within each row's length if ``REVERSED``."""
    return tl.where(t < length, length - 1 - t, t) if REVERSED else t


@scan.step_kernel
def rnn_step_fwd_kernel(  # type: ignore[no-untyped-def]
    w_hh,
    x_proj,
    steps,
    h,
    state,
    t,
    blocks,
    H: tl.constexpr,
    TANH: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Step ``t`` of a tile of rows and units; the steps are run from the last to the first.

    If the recurrence runs forward in time, the rows are ``REVERSED``: their steps are stored in the opposite
    order.

    Reads x_proj [P, B, T, H] at valid steps and w_hh [H, H], stored by inputs; writes step t of h
    [P, B, T, H].
    The nonlinearity is tanh if ``TANH``, else ReLU. ``state [2, P B, H]`` has the rows' h in float32 for even
    and odd steps: a step reads one and writes the other.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    active, here = t < length, place(t, length, REVERSED)
    state_row, size = state + row * H, scan.row_count(steps) * H
    value = linear_backward(state_row + (t + 1) % 2 * size, active, H, w_hh, columns, H, blocks)
    value += load_row(at(x_proj, steps, row, here), columns, H, active)
    value = tanh(value) if TANH else relu(value)
    store_row(state_row + t % 2 * size, columns, H, active, value)
    scan.store_padded(h, scan.place_of(steps, row, here), columns, H, exists, active, value)


@scan.step_kernel
def rnn_step_bwd_kernel(  # type: ignore[no-untyped-def]
    w_hh,
    dh,
    h,
    steps,
    dx_proj,
    dh_0,
    state,
    t,
    blocks,
    H: tl.constexpr,
    TANH: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Step ``t`` of a tile, from the first to one past the last: ``delta_t = f'(h_t) dL/dh_t``.

    Reads dh and h [P, B, T, H] at valid steps, and w_hh [H, H]; writes step t of dx_proj [P, B, T, H], which
    are the deltas, and dh_0 [P, B, H] of the rows that end before it. ``state [2, P B, H]`` has the deltas
    in float32; ``REVERSED`` is as in the forward kernel.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    active, here = t < length, place(t, length, REVERSED)
    carried = t <= tl.where(t > 0, length, -1)  # step 0 has no predecessor
    state_row, size = state + row * H, scan.row_count(steps) * H
    value = linear_backward(state_row + (t + 1) % 2 * size, carried, H, w_hh, columns, H, blocks)
    # The gradient that leaves a row's last step is that of its h_0.
    store_row(dh_0 + row * H, columns, H, exists & (t == length), value)
    value += load_row(at(dh, steps, row, here), columns, H, active)
    h_here = load_row(at(h, steps, row, here), columns, H, active)
    value = value * (1.0 - h_here * h_here) if TANH else tl.where(h_here > 0.0, value, 0.0)
    store_row(state_row + t % 2 * size, columns, H, active, value)
    written = t < tl.where(exists, decoded(steps.steps), 0)
    scan.store_padded(dx_proj, scan.place_of(steps, row, here), columns, H, written, active, value)
