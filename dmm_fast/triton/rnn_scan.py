"""The inference network's recurrence, backward or forward in time, and its gradient."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import scan
from dmm_fast.triton.common import tanh
from dmm_fast.triton.layers import linear_backward, product, relu
from dmm_fast.triton.rows import at, decoded, load_row, rows_of, steps_of, store_row
from dmm_fast.triton.step_gradients import rnn_gradients


def rnn_scan(
    x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> Tensor:
    """``h [P, B, T, H]``, zero past the end of each row."""
    P, B, T, H = x_proj.shape
    h = x_proj.new_empty((P, B, T, H))
    given = (rows_of(x_proj), rows_of(h_0), steps_of(x_proj, lengths))
    state, options = _two_states(h), _constants(H, nonlinearity, direction)
    scan.launch(rnn_scan_fwd_kernel, P * B, h, w_hh.contiguous(), *given, h, state, **options)
    return h


def rnn_scan_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx_proj [P, B, T, H], dw_hh [H, H]``, and dh_0 in the shape of h_0."""
    P, B, T, H = h.shape
    dx_proj, dh_0 = h.new_empty((P, B, T, H)), h.new_empty((P, B, H))
    given = (rows_of(dh), rows_of(h), steps_of(h, lengths))
    state, options = _two_states(h), _constants(H, nonlinearity, direction)
    scan.launch(rnn_scan_bwd_kernel, P * B, h, w_hh.contiguous(), *given, dx_proj, dh_0, state, **options)
    return dx_proj, *rnn_gradients(dx_proj, dh_0, h, h_0, lengths, direction)


def _constants(H: int, nonlinearity: str, direction: str) -> dict[str, Any]:
    return {
        "H": H,
        "TANH": nonlinearity == "tanh",
        "REVERSED": direction == "forward",
        "blocks": scan.layer_blocks(H, H, 64),
    }


def _two_states(h: Tensor) -> Tensor:
    P, B, _, H = h.shape
    return h.new_empty((2, P * B, H), dtype=torch.float32)


@triton.jit
def place(t, length, REVERSED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The place in memory of step ``t`` of rows; steps past the end of a row are where they are."""
    return tl.where(t < length, length - 1 - t, t) if REVERSED else t


@triton.jit
def rnn_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    w_hh,
    x_proj,
    h_0,
    steps,
    h,
    state,
    H: tl.constexpr,
    TANH: tl.constexpr,
    REVERSED: tl.constexpr,
    blocks,
    BLOCK_M: tl.constexpr,
):
    """A block of rows from the end of its longest back to the first step.

    Forward in time the rows are ``REVERSED``: a step of theirs is at another place.

    Reads x_proj [P, B, T, H] at valid steps, h_0 [P, B, H] and w_hh [H, H]; writes all of h [P, B, T, H].
    The nonlinearity is a tanh where ``TANH``, else a relu.
    ``state [2, P B, H]`` holds the rows' h in float32, of an even step and of an odd one: a step reads one
    and writes the other, so that it needs a single barrier.
    """
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    state_row, size = state + row * H, scan.row_count(steps) * H
    x_row, h_0_row = at(x_proj, steps, row, 0), at(h_0, steps, row, 0)
    for n in range(0, H, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        value = load_row(h_0_row, columns, H, exists)
        # A row starts at its own step, so either may be what it reads first.
        store_row(state_row, columns, H, exists, value)
        store_row(state_row + size, columns, H, exists, value)
    scan.clear_past_longest(h, steps, row, exists, longest, H, blocks.N)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active = t < length
        before, after = state_row + (t + 1) % 2 * size, state_row + t % 2 * size
        here = place(t, length, REVERSED)
        to = h + (row * decoded(steps.steps) + here) * H
        for n in range(0, H, blocks.N):
            columns = n + tl.arange(0, blocks.N)
            value = product(before, active, H, w_hh, columns, H, H, 1, blocks)
            value += load_row(scan.at_step(x_row, x_proj, here), columns, H, active)
            value = tanh(value) if TANH else relu(value)
            store_row(after, columns, H, active, value)
            store_row(to, columns, H, exists, tl.where(active[:, None], value, 0.0))
        t -= 1


@triton.jit
def rnn_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    w_hh,
    dh,
    h,
    steps,
    dx_proj,
    dh_0,
    state,
    H: tl.constexpr,
    TANH: tl.constexpr,
    REVERSED: tl.constexpr,
    blocks,
    BLOCK_M: tl.constexpr,
):
    """A block of rows from the first step to the end of its longest: ``delta_t = f'(h_t) dL/dh_t``.

    Reads dh and h [P, B, T, H] at valid steps, and w_hh [H, H]; writes all of dx_proj [P, B, T, H], which
    are the deltas, and of dh_0 [P, B, H]. ``state [2, P B, H]`` holds the deltas in float32, and rows are
    ``REVERSED``, as in the forward kernel.
    """
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    state_row, size = state + row * H, scan.row_count(steps) * H
    dh_row, h_row = at(dh, steps, row, 0), at(h, steps, row, 0)
    scan.clear_past_longest(dx_proj, steps, row, exists, longest, H, blocks.N)

    written = tl.where(exists, longest, 0)  # steps of each row that the loop writes
    carried = length < 0  # nothing comes into step 0
    t = longest * 0
    while t <= longest:
        tl.debug_barrier()
        active, has_ended = t < length, exists & (t == length)
        before, after = state_row + (t + 1) % 2 * size, state_row + t % 2 * size
        here = place(t, length, REVERSED)
        to = dx_proj + (row * decoded(steps.steps) + here) * H
        for n in range(0, H, blocks.N):
            columns = n + tl.arange(0, blocks.N)
            value = linear_backward(before, carried, H, w_hh, columns, H, blocks)
            # What comes out of a row's last step is for its h_0.
            store_row(dh_0 + row * H, columns, H, has_ended, value)
            value += load_row(scan.at_step(dh_row, dh, here), columns, H, active)
            h_here = load_row(scan.at_step(h_row, h, here), columns, H, active)
            if TANH:
                value *= 1.0 - h_here * h_here
            else:
                value = tl.where(h_here > 0.0, value, 0.0)
            store_row(after, columns, H, active, value)
            store_row(to, columns, H, t < written, tl.where(active[:, None], value, 0.0))
        carried = active
        t += 1
