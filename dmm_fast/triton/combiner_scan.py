"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient.

A step has two halves with a barrier between them: from the latents of a block of rows to all their hidden
units, and from the hidden units back to the latents.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import CombinerWeights
from dmm_fast.triton import scan
from dmm_fast.triton.combiner import Sizes
from dmm_fast.triton.common import exact_tanh, sigmoid, softplus
from dmm_fast.triton.layers import copy_rows, linear, linear_backward
from dmm_fast.triton.rows import Rows, at, constants, decoded, load_row, rows_of, steps_of, store_row
from dmm_fast.triton.step_gradients import combiner_gradients


class Drawn(NamedTuple):
    """The results of the forward pass, ``[P, B, T, Z]``, and the tanh ``[P, B, T, H]`` in float32 or None."""

    z: Any
    loc: Any
    pre_scale: Any
    g: Any


class State(NamedTuple):
    """Scratch for what a half of a step leaves for the next: ``[P B, Z]`` and ``[P B, H]`` in float32."""

    z: Any
    c: Any


class BackwardWeights(NamedTuple):
    """Weights that gradients pass: ``w_z [H, Z]``, and ``w_out [2 Z, H]``, which is w_loc over w_scale."""

    w_z: Any
    w_out: Any


class Incoming(NamedTuple):
    """The gradients by z, loc and pre_scale, ``[P, B, T, Z]``."""

    dz: Rows
    dloc: Rows
    dpre_scale: Rows


class Gradients(NamedTuple):
    """The results of the backward pass, and what the gradients of the weights are made of, in float32.

    ``da [P, B, T, H]`` is the gradient by what goes into the tanh, ``dout [P, B, T, 2 Z]`` the one by loc and
    by pre_scale with all paths included. Both are written at valid steps only.
    """

    dh: Any  # [P, B, T, H]
    deps: Any  # [P, B, T, Z]
    dz_q_0: Any  # [P, B, Z]
    da: Any
    dout: Any


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor, keep_g: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward ``g [P, B, T, H]`` in float32.

    All are zero past the end of each row. Without ``keep_g`` the last is empty.
    """
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    w = CombinerWeights(*(weight.contiguous() for weight in weights))
    z, loc, pre_scale = (eps.new_empty((P, B, T, Z)) for _ in range(3))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    out = Drawn(z, loc, pre_scale, g if keep_g else None)
    state = State(*(eps.new_empty((P * B, width), dtype=torch.float32) for width in (Z, H)))
    given = (rows_of(h), rows_of(eps), rows_of(z_q_0), steps_of(eps, lengths))
    scan.launch(combiner_scan_fwd_kernel, P * B, eps, w, *given, out, state, **_constants(H, Z))
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
    weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``dh, deps, dz_q_0`` and the gradients of the weights."""
    w_z, _, w_loc, _, w_scale, _ = weights
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    w = BackwardWeights(w_z.contiguous(), torch.cat([w_loc, w_scale]))
    dh, deps, dz_q_0 = h.new_empty((P, B, T, H)), eps.new_empty((P, B, T, Z)), eps.new_empty((P, B, Z))
    g = g.contiguous()
    da, dout = g.new_empty(g.shape), g.new_empty((P, B, T, 2 * Z))
    incoming = Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
    given = (incoming, rows_of(eps), rows_of(pre_scale), g, steps_of(eps, lengths))
    out = Gradients(dh, deps, dz_q_0, da, dout)
    scan.launch(combiner_scan_bwd_kernel, P * B, eps, w, *given, out, **_constants(H, Z))
    dz_q_0, *dweights = combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, lengths)
    return dh, deps, dz_q_0, dweights


def _constants(H: int, Z: int) -> dict[str, tuple[Any, ...]]:
    """The sizes, and the blocks of layers from latents to hidden units and from those to latents."""
    return {
        "size": constants(Sizes(Z, H)),
        "to_hidden": scan.layer_blocks(H, Z, 128),
        "to_latents": scan.layer_blocks(Z, H, 32),
    }


@triton.jit
def combiner_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    w, h, eps, z_q_0, steps, out, state, size, to_hidden, to_latents, BLOCK_M: tl.constexpr
):
    """A block of rows from the first step to the end of its longest.

    Reads h [P, B, T, H] and eps [P, B, T, Z] at valid steps, z_q_0 [P, B, Z] and the weights ``w``. Writes
    all of the :class:`Drawn` tensors ``out``, and the :class:`State` ``state``. ``to_hidden`` and
    ``to_latents`` are the blocks of layers with H and with Z outputs.
    """
    Z, H = size.Z, size.H
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    h_row, eps_row = at(h, steps, row, 0), at(eps, steps, row, 0)
    z_row, c_row = state.z + row * Z, state.c + row * H
    copy_rows(at(z_q_0, steps, row, 0), exists, z_row, Z, to_latents)
    scan.clear_past_longest(out.z, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.loc, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.pre_scale, steps, row, exists, longest, Z, to_latents.N)
    if out.g is not None:
        scan.clear_past_longest(out.g, steps, row, exists, longest, H, to_hidden.N)

    t = longest * 0
    while t < longest:
        active = t < length
        place = row * decoded(steps.steps) + t
        tl.debug_barrier()
        for n in range(0, H, to_hidden.N):
            units = n + tl.arange(0, to_hidden.N)
            g = exact_tanh(linear(z_row, active, Z, w.w_z, w.b_z, units, H, to_hidden))
            if out.g is not None:
                store_row(out.g + place * H, units, H, exists, tl.where(active[:, None], g, 0.0))
            h_here = load_row(scan.at_step(h_row, h, t), units, H, active)
            store_row(c_row, units, H, active, 0.5 * (g + h_here))
        tl.debug_barrier()
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            loc = linear(c_row, active, H, w.w_loc, w.b_loc, columns, Z, to_latents)
            pre_scale = linear(c_row, active, H, w.w_scale, w.b_scale, columns, Z, to_latents)
            noise = load_row(scan.at_step(eps_row, eps, t), columns, Z, active)
            z = loc + softplus(pre_scale) * noise
            store_row(z_row, columns, Z, active, z)
            on = active[:, None]
            store_row(out.z + place * Z, columns, Z, exists, tl.where(on, z, 0.0))
            store_row(out.loc + place * Z, columns, Z, exists, tl.where(on, loc, 0.0))
            store_row(out.pre_scale + place * Z, columns, Z, exists, tl.where(on, pre_scale, 0.0))
        t += 1


@triton.jit
def combiner_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    w, incoming, eps, pre_scale, g, steps, out, size, to_hidden, to_latents, BLOCK_M: tl.constexpr
):
    """A block of rows from the end of its longest back to what its chains started from.

    Reads the :class:`Incoming` gradients, eps and pre_scale [P, B, T, Z], g [P, B, T, H] at valid steps, and
    the :class:`BackwardWeights` ``w``. Writes the :class:`Gradients` ``out``: through ``da`` and ``dout`` a
    half of a step has what the one before it left. The blocks are those of the forward kernel.
    """
    Z, H = size.Z, size.H
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    dz_row, dloc_row = at(incoming.dz, steps, row, 0), at(incoming.dloc, steps, row, 0)
    dpre_scale_row = at(incoming.dpre_scale, steps, row, 0)
    eps_row, pre_scale_row = at(eps, steps, row, 0), at(pre_scale, steps, row, 0)
    scan.clear_past_longest(out.dh, steps, row, exists, longest, H, to_hidden.N)
    scan.clear_past_longest(out.deps, steps, row, exists, longest, Z, to_latents.N)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active, carried = t < length, t + 1 < length  # nothing comes back into a row's last step
        place = row * decoded(steps.steps) + t
        dout_row = out.dout + place * 2 * Z
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            dz = linear_backward(out.da + (place + 1) * H, carried, H, w.w_z, columns, Z, to_latents)
            dz += load_row(scan.at_step(dz_row, incoming.dz, t), columns, Z, active)
            dloc = load_row(scan.at_step(dloc_row, incoming.dloc, t), columns, Z, active)
            dpre_scale = load_row(scan.at_step(dpre_scale_row, incoming.dpre_scale, t), columns, Z, active)
            s = load_row(scan.at_step(pre_scale_row, pre_scale, t), columns, Z, active)
            noise = load_row(scan.at_step(eps_row, eps, t), columns, Z, active)
            store_row(dout_row, columns, Z, active, dloc + dz)
            store_row(dout_row + Z, columns, Z, active, dpre_scale + dz * noise * sigmoid(s))
            deps = tl.where(active[:, None], dz * softplus(s), 0.0)
            store_row(out.deps + place * Z, columns, Z, exists, deps)
        tl.debug_barrier()
        for n in range(0, H, to_hidden.N):
            units = n + tl.arange(0, to_hidden.N)
            dc = linear_backward(dout_row, active, 2 * Z, w.w_out, units, H, to_hidden)
            store_row(out.dh + place * H, units, H, exists, tl.where(active[:, None], 0.5 * dc, 0.0))
            g_here = load_row(g + place * H, units, H, active)
            store_row(out.da + place * H, units, H, active, 0.5 * dc * (1.0 - g_here * g_here))
        t -= 1

    tl.debug_barrier()
    da_row = out.da + row * decoded(steps.steps) * H
    for n in range(0, Z, to_latents.N):
        columns = n + tl.arange(0, to_latents.N)
        dz_q_0 = linear_backward(da_row, length > 0, H, w.w_z, columns, Z, to_latents)
        store_row(out.dz_q_0 + row * Z, columns, Z, exists, dz_q_0)
