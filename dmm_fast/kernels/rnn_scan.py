"""The inference network's recurrence, backward in time, and its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import input_precision, on_device_of, row_start, tanh
from dmm_fast.kernels.scan import LAUNCH, block_of_rows, clear_steps, grid, rows_of_program, rows_times, tile
from dmm_fast.kernels.step_gradients import rnn_gradients

__all__ = ["rnn_scan", "rnn_scan_backward"]


def rnn_scan(x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str) -> Tensor:
    """``h [P, B, T, H]``, zero past the end of each row."""
    P, B, T, H = x_proj.shape
    h, h_0 = x_proj.new_empty((P, B, T, H)), h_0.expand(P, B, H)
    with on_device_of(x_proj):
        rnn_scan_fwd_kernel[grid(P * B)](
            *(x_proj, *x_proj.stride()),
            w_hh.contiguous(),
            *(h_0, *h_0.stride()),
            lengths.contiguous(),
            _two_states(x_proj, P * B, H),
            h,
            *(P * B, B, T),
            **_constants(P * B, H, nonlinearity),
            **LAUNCH,
        )
    return h


def rnn_scan_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx_proj [P, B, T, H], dw_hh [H, H]``, and dh_0 in the shape of h_0."""
    P, B, T, H = h.shape
    dx_proj, dh_0 = h.new_empty((P, B, T, H)), h.new_empty((P, B, H))
    with on_device_of(h):
        rnn_scan_bwd_kernel[grid(P * B)](
            *(dh, *dh.stride()),
            *(h, *h.stride()),
            w_hh.contiguous(),
            lengths.contiguous(),
            _two_states(h, P * B, H),
            dx_proj,
            dh_0,
            *(P * B, B, T),
            **_constants(P * B, H, nonlinearity),
            **LAUNCH,
        )
    return dx_proj, *rnn_gradients(dx_proj, dh_0, h, h_0, lengths)


def _constants(rows: int, H: int, nonlinearity: str) -> dict[str, int | str]:
    return {
        "H": H,
        "TANH": nonlinearity == "tanh",
        "ROWS": rows_of_program(rows),
        "BLOCK_N": tile(H, 64),
        "BLOCK_K": tile(H, 64),
        "PRECISION": input_precision("ieee"),
    }


def _two_states(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_empty((2, rows, width), dtype=torch.float32)


_ANY_VALUE = ["rows", "batch", "T"]  # recompiling is for feature sizes


@triton.jit(do_not_specialize=[*_ANY_VALUE, "x_p", "x_b", "h_0_p", "h_0_b"])
def rnn_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    x_proj,
    x_p,
    x_b,
    x_t,
    x_h,
    w_hh,
    h_0,
    h_0_p,
    h_0_b,
    h_0_h,
    lengths,
    state,
    h,
    rows,
    batch,
    T,
    H: tl.constexpr,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows from the end of its longest back to the first step.

    Reads ``x_proj`` at valid steps, ``w_hh [H, H]``, ``h_0`` and ``lengths``; writes all of
    ``h [rows, T, H]``. ``state [2, rows, H]`` holds the rows' h in float32, of an even step and of an odd
    one: a step reads one and writes the other, so that it needs a single barrier.
    """
    row, exists, length, longest = block_of_rows(lengths, rows, batch, ROWS)
    x_row = x_proj + row_start(row, batch, x_p, x_b)
    h_row, state_row, size = h + row * T * H, state + row * H, rows.to(tl.int64) * H

    first = h_0 + row_start(row, batch, h_0_p, h_0_b)
    for start in range(0, H, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        here = exists[:, None] & (n < H)[None, :]
        value = tl.load(first[:, None] + n[None, :] * h_0_h, mask=here, other=0.0).to(tl.float32)
        # A row starts at its own step, so either may be what it reads first.
        tl.store(state_row[:, None] + n[None, :], value, mask=here)
        tl.store(state_row[:, None] + size + n[None, :], value, mask=here)
    clear_steps(h_row, exists, longest, T, H, BLOCK_N)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active = t < length
        before, after = state_row + (t + 1) % 2 * size, state_row + t % 2 * size
        for start in range(0, H, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            computed = active[:, None] & (n < H)[None, :]
            value = rows_times(before, active, w_hh, 1, H, n, H, H, BLOCK_K, PRECISION)
            at = x_row[:, None] + t * x_t + n[None, :] * x_h
            value += tl.load(at, mask=computed, other=0.0).to(tl.float32)
            if TANH:
                value = tanh(value)
            else:
                value = tl.where(value < 0.0, 0.0, value)  # unlike a maximum, it keeps NaN
            tl.store(after[:, None] + n[None, :], value, mask=computed)
            value = tl.where(active[:, None], value, 0.0).to(h.dtype.element_ty)
            tl.store(h_row[:, None] + t * H + n[None, :], value, mask=exists[:, None] & (n < H)[None, :])
        t -= 1


@triton.jit(do_not_specialize=[*_ANY_VALUE, "dh_p", "dh_b", "h_p", "h_b"])
def rnn_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    dh,
    dh_p,
    dh_b,
    dh_t,
    dh_h,
    h,
    h_p,
    h_b,
    h_t,
    h_h,
    w_hh,
    lengths,
    state,
    dx_proj,
    dh_0,
    rows,
    batch,
    T,
    H: tl.constexpr,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows from the first step to the end of its longest: ``delta_t = f'(h_t) dL/dh_t``.

    Reads ``dh`` and ``h`` at valid steps, ``w_hh`` and ``lengths``; writes all of
    ``dx_proj [rows, T, H]``, which are the deltas, and of ``dh_0 [rows, H]``. ``state [2, rows, H]`` holds
    the deltas in float32 as in the forward kernel.
    """
    row, exists, length, longest = block_of_rows(lengths, rows, batch, ROWS)
    dh_row = dh + row_start(row, batch, dh_p, dh_b)
    h_row = h + row_start(row, batch, h_p, h_b)
    dx_row, dh_0_row = dx_proj + row * T * H, dh_0 + row * H
    state_row, size = state + row * H, rows.to(tl.int64) * H
    clear_steps(dx_row, exists, longest, T, H, BLOCK_N)

    written = tl.where(exists, longest, 0)  # steps of each row that the loop writes
    carried = length < 0  # nothing comes into step 0
    t = longest * 0
    while t <= longest:
        tl.debug_barrier()
        active, has_ended = t < length, exists & (t == length)
        before, after = state_row + (t + 1) % 2 * size, state_row + t % 2 * size
        for start in range(0, H, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            fits = (n < H)[None, :]
            value = rows_times(before, carried, w_hh, H, 1, n, H, H, BLOCK_K, PRECISION)
            # What comes out of a row's last step is for its h_0.
            into_h_0 = value.to(dh_0.dtype.element_ty)
            tl.store(dh_0_row[:, None] + n[None, :], into_h_0, mask=has_ended[:, None] & fits)

            computed = active[:, None] & fits
            at = dh_row[:, None] + t * dh_t + n[None, :] * dh_h
            value += tl.load(at, mask=computed, other=0.0).to(tl.float32)
            at = h_row[:, None] + t * h_t + n[None, :] * h_h
            h_here = tl.load(at, mask=computed, other=0.0).to(tl.float32)
            if TANH:
                value *= 1.0 - h_here * h_here
            else:
                value = tl.where(h_here > 0.0, value, 0.0)
            tl.store(after[:, None] + n[None, :], value, mask=computed)
            value = tl.where(active[:, None], value, 0.0).to(dx_proj.dtype.element_ty)
            tl.store(dx_row[:, None] + t * H + n[None, :], value, mask=(t < written)[:, None] & fits)
        carried = active
        t += 1
