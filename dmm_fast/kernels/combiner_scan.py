"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient.

A step has two halves with a barrier between them: from the latents of a block of rows to all their hidden
units, and from the hidden units back to the latents.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import exact_tanh, input_precision, on_device_of, row_start, sigmoid, softplus
from dmm_fast.kernels.scan import LAUNCH, block_of_rows, clear_steps, grid, rows_of_program, rows_times, tile
from dmm_fast.kernels.step_gradients import combiner_gradients

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
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward ``g [P, B, T, H]`` in float32.

    All are zero past the end of each row. Without ``keep_g`` the last is empty.
    """
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    z, loc, pre_scale = (eps.new_empty((P, B, T, Z)) for _ in range(3))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    z_q_0 = z_q_0.expand(P, B, Z)
    weights = (w_z, b_z, w_loc, b_loc, w_scale, b_scale)
    with on_device_of(eps):
        combiner_scan_fwd_kernel[grid(P * B)](
            *(h, *h.stride()),
            *(eps, *eps.stride()),
            *(z_q_0, *z_q_0.stride()),
            *(weight.contiguous() for weight in weights),
            lengths.contiguous(),
            eps.new_empty((P * B, Z), dtype=torch.float32),
            eps.new_empty((P * B, H), dtype=torch.float32),
            *(z, loc, pre_scale, g if keep_g else None),
            *(P * B, B, T),
            **_constants(P * B, H, Z),
            **LAUNCH,
        )
    return z, loc, pre_scale, g


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
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    dh, deps, dz_q_0 = h.new_empty((P, B, T, H)), eps.new_empty((P, B, T, Z)), eps.new_empty((P, B, Z))
    g = g.contiguous()
    da, dout = g.new_empty(g.shape), g.new_empty((P, B, T, 2 * Z))
    with on_device_of(h):
        combiner_scan_bwd_kernel[grid(P * B)](
            *(dz, *dz.stride()),
            *(dloc, *dloc.stride()),
            *(dpre_scale, *dpre_scale.stride()),
            *(eps, *eps.stride()),
            *(pre_scale, *pre_scale.stride()),
            *(w_z.contiguous(), torch.cat([w_loc, w_scale])),
            lengths.contiguous(),
            *(g, da, dout, dh, deps, dz_q_0),
            *(P * B, B, T),
            **_constants(P * B, H, Z),
            **LAUNCH,
        )
    gradients = combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, lengths)
    dz_q_0, dw_z, db_z, dw_loc, db_loc, dw_scale, db_scale = gradients
    return dh, deps, dz_q_0, dw_z, db_z, dw_loc, db_loc, dw_scale, db_scale


def _constants(rows: int, H: int, Z: int) -> dict[str, int | str]:
    return {
        "H": H,
        "Z": Z,
        "ROWS": rows_of_program(rows),
        "BLOCK_H": tile(H, 128),
        "BLOCK_Z": tile(Z, 32),
        "BLOCK_K_H": tile(H, 64),
        "BLOCK_K_Z": tile(Z, 64),
        "PRECISION": input_precision("ieee"),
    }


_ANY_VALUE = ["rows", "batch", "T"]  # recompiling is for feature sizes


@triton.jit(do_not_specialize=[*_ANY_VALUE, "h_p", "h_b", "eps_p", "eps_b", "z_0_p", "z_0_b"])
def combiner_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    h,
    h_p,
    h_b,
    h_t,
    h_h,
    eps,
    eps_p,
    eps_b,
    eps_t,
    eps_z,
    z_0,
    z_0_p,
    z_0_b,
    z_0_z,
    w_z,
    b_z,
    w_loc,
    b_loc,
    w_scale,
    b_scale,
    lengths,
    z_state,
    c_state,
    z,
    loc,
    pre_scale,
    g,
    rows,
    batch,
    T,
    H: tl.constexpr,
    Z: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_K_H: tl.constexpr,
    BLOCK_K_Z: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows from the first step to the end of its longest.

    Reads ``h`` and ``eps`` at valid steps, ``z_0``, the weights and ``lengths``; writes all of ``z``,
    ``loc`` and ``pre_scale``, each ``[rows, T, Z]``, and of ``g [rows, T, H]`` unless it is None.
    ``z_state [rows, Z]`` and ``c_state [rows, H]``, both float32, hold what a half of a step leaves for
    the next.
    """
    row, exists, length, longest = block_of_rows(lengths, rows, batch, ROWS)
    h_row, eps_row = h + row_start(row, batch, h_p, h_b), eps + row_start(row, batch, eps_p, eps_b)
    z_before, c_row, out_row = z_state + row * Z, c_state + row * H, row * T * Z

    first = z_0 + row_start(row, batch, z_0_p, z_0_b)
    for start in range(0, Z, BLOCK_Z):
        n = start + tl.arange(0, BLOCK_Z)
        here = exists[:, None] & (n < Z)[None, :]
        value = tl.load(first[:, None] + n[None, :] * z_0_z, mask=here, other=0.0)
        tl.store(z_before[:, None] + n[None, :], value.to(tl.float32), mask=here)
    clear_steps(z + out_row, exists, longest, T, Z, BLOCK_Z)
    clear_steps(loc + out_row, exists, longest, T, Z, BLOCK_Z)
    clear_steps(pre_scale + out_row, exists, longest, T, Z, BLOCK_Z)
    if g is not None:
        clear_steps(g + row * T * H, exists, longest, T, H, BLOCK_H)

    t = longest * 0
    while t < longest:
        active = t < length
        tl.debug_barrier()
        for start in range(0, H, BLOCK_H):
            n = start + tl.arange(0, BLOCK_H)
            fits = n < H
            here = active[:, None] & fits[None, :]
            a = rows_times(z_before, active, w_z, 1, Z, n, Z, H, BLOCK_K_Z, PRECISION)
            g_here = exact_tanh(a + tl.load(b_z + n, mask=fits, other=0.0).to(tl.float32)[None, :])
            if g is not None:
                at = (row * T * H + t * H)[:, None] + n[None, :]
                tl.store(g + at, tl.where(active[:, None], g_here, 0.0), mask=exists[:, None] & fits[None, :])
            h_here = tl.load(h_row[:, None] + t * h_t + n[None, :] * h_h, mask=here, other=0.0)
            tl.store(c_row[:, None] + n[None, :], 0.5 * (g_here + h_here.to(tl.float32)), mask=here)
        tl.debug_barrier()
        for start in range(0, Z, BLOCK_Z):
            n = start + tl.arange(0, BLOCK_Z)
            fits = n < Z
            here = active[:, None] & fits[None, :]
            m = rows_times(c_row, active, w_loc, 1, H, n, H, Z, BLOCK_K_H, PRECISION)
            m += tl.load(b_loc + n, mask=fits, other=0.0).to(tl.float32)[None, :]
            s = rows_times(c_row, active, w_scale, 1, H, n, H, Z, BLOCK_K_H, PRECISION)
            s += tl.load(b_scale + n, mask=fits, other=0.0).to(tl.float32)[None, :]
            noise = tl.load(eps_row[:, None] + t * eps_t + n[None, :] * eps_z, mask=here, other=0.0)
            z_here = m + softplus(s) * noise.to(tl.float32)
            tl.store(z_before[:, None] + n[None, :], z_here, mask=here)

            at, here = (out_row + t * Z)[:, None] + n[None, :], exists[:, None] & fits[None, :]
            on = active[:, None]
            tl.store(z + at, tl.where(on, z_here, 0.0).to(z.dtype.element_ty), mask=here)
            tl.store(loc + at, tl.where(on, m, 0.0).to(z.dtype.element_ty), mask=here)
            tl.store(pre_scale + at, tl.where(on, s, 0.0).to(z.dtype.element_ty), mask=here)
        t += 1


@triton.jit(
    do_not_specialize=[
        *_ANY_VALUE,
        *("dz_p", "dz_b", "dloc_p", "dloc_b", "dpre_p", "dpre_b", "eps_p", "eps_b", "pre_p", "pre_b"),
    ]
)
def combiner_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    dz,
    dz_p,
    dz_b,
    dz_t,
    dz_z,
    dloc,
    dloc_p,
    dloc_b,
    dloc_t,
    dloc_z,
    dpre,
    dpre_p,
    dpre_b,
    dpre_t,
    dpre_z,
    eps,
    eps_p,
    eps_b,
    eps_t,
    eps_z,
    pre,
    pre_p,
    pre_b,
    pre_t,
    pre_z,
    w_z,
    w_out,
    lengths,
    g,
    da,
    dout,
    dh,
    deps,
    dz_0,
    rows,
    batch,
    T,
    H: tl.constexpr,
    Z: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_K_H: tl.constexpr,
    BLOCK_K_Z: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows from the end of its longest back to what its chains started from.

    Reads the incoming gradients, ``eps`` and ``pre`` (pre_scale) at valid steps, ``w_z``,
    ``w_out [2 Z, H]`` (w_loc over w_scale) and ``lengths``; writes all of ``dh [rows, T, H]``,
    ``deps [rows, T, Z]`` and ``dz_0 [rows, Z]``. At valid steps it puts the gradients of loc and pre_scale,
    all paths included, into ``dout [rows, T, 2 Z]``, and that of what ``g [rows, T, H]`` is the tanh of into
    ``da``; both are float32, and through them a half of a step has what the one before it left.
    """
    row, exists, length, longest = block_of_rows(lengths, rows, batch, ROWS)
    dz_row, dloc_row = dz + row_start(row, batch, dz_p, dz_b), dloc + row_start(row, batch, dloc_p, dloc_b)
    dpre_row, pre_row = (
        dpre + row_start(row, batch, dpre_p, dpre_b),
        pre + row_start(row, batch, pre_p, pre_b),
    )
    eps_row = eps + row_start(row, batch, eps_p, eps_b)
    dh_row, deps_row, dz_0_row = dh + row * T * H, deps + row * T * Z, dz_0 + row * Z
    g_row, da_row, dout_row = g + row * T * H, da + row * T * H, dout + row * T * 2 * Z
    clear_steps(dh_row, exists, longest, T, H, BLOCK_H)
    clear_steps(deps_row, exists, longest, T, Z, BLOCK_Z)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active, carried = t < length, t + 1 < length  # nothing comes back into a row's last step
        out_here = dout_row + t * 2 * Z
        for start in range(0, Z, BLOCK_Z):
            n = start + tl.arange(0, BLOCK_Z)
            fits, column = (n < Z)[None, :], n[None, :]
            here = active[:, None] & fits
            da_after = da_row + (t + 1) * H
            dz_all = rows_times(da_after, carried, w_z, Z, 1, n, H, Z, BLOCK_K_H, PRECISION)
            given = tl.load(dz_row[:, None] + t * dz_t + column * dz_z, mask=here, other=0.0)
            dz_all += given.to(tl.float32)
            s = tl.load(pre_row[:, None] + t * pre_t + column * pre_z, mask=here, other=0.0).to(tl.float32)
            noise = tl.load(eps_row[:, None] + t * eps_t + column * eps_z, mask=here, other=0.0)
            given = tl.load(dloc_row[:, None] + t * dloc_t + column * dloc_z, mask=here, other=0.0)
            tl.store(out_here[:, None] + column, given.to(tl.float32) + dz_all, mask=here)
            given = tl.load(dpre_row[:, None] + t * dpre_t + column * dpre_z, mask=here, other=0.0)
            through_scale = dz_all * noise.to(tl.float32) * sigmoid(s)
            tl.store(out_here[:, None] + Z + column, given.to(tl.float32) + through_scale, mask=here)
            value = tl.where(active[:, None], dz_all * softplus(s), 0.0).to(deps.dtype.element_ty)
            tl.store(deps_row[:, None] + t * Z + column, value, mask=exists[:, None] & fits)
        tl.debug_barrier()
        for start in range(0, H, BLOCK_H):
            n = start + tl.arange(0, BLOCK_H)
            fits, column = (n < H)[None, :], n[None, :]
            here = active[:, None] & fits
            dc = rows_times(out_here, active, w_out, H, 1, n, 2 * Z, H, BLOCK_K_Z, PRECISION)
            value = tl.where(active[:, None], 0.5 * dc, 0.0).to(dh.dtype.element_ty)
            tl.store(dh_row[:, None] + t * H + column, value, mask=exists[:, None] & fits)
            g_here = tl.load(g_row[:, None] + t * H + column, mask=here, other=0.0)
            tl.store(da_row[:, None] + t * H + column, 0.5 * dc * (1.0 - g_here * g_here), mask=here)
        t -= 1

    tl.debug_barrier()
    for start in range(0, Z, BLOCK_Z):
        n = start + tl.arange(0, BLOCK_Z)
        value = rows_times(da_row, length > 0, w_z, Z, 1, n, H, Z, BLOCK_K_H, PRECISION)
        mask = exists[:, None] & (n < Z)[None, :]
        tl.store(dz_0_row[:, None] + n[None, :], value.to(dz_0.dtype.element_ty), mask=mask)
