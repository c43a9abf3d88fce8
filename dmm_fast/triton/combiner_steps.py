"""Halves of a step of the combiner, forward and backward, for the scans that draw its chain.

A half has all columns of its result for a block of rows; between halves the caller puts a barrier.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import scan
from dmm_fast.triton.common import exact_tanh, sigmoid, softplus
from dmm_fast.triton.layers import linear, linear_backward
from dmm_fast.triton.rows import Rows, decoded, load_row, store_row


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


def backward_weights(weights: list[Tensor]) -> BackwardWeights:
    """The combiner's weights for a backward kernel."""
    w_z, _, w_loc, _, w_scale, _ = weights
    return BackwardWeights(w_z.contiguous(), torch.cat([w_loc, w_scale]))


def gradients_for(h: Tensor, eps: Tensor) -> Gradients:
    """Room for the gradients, from ``h [P, B, T, H]`` and ``eps [P, B, T, Z]``."""
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    return Gradients(
        dh=h.new_empty((P, B, T, H)),
        deps=eps.new_empty((P, B, T, Z)),
        dz_q_0=eps.new_empty((P, B, Z)),
        da=eps.new_empty((P, B, T, H), dtype=torch.float32),
        dout=eps.new_empty((P, B, T, 2 * Z), dtype=torch.float32),
    )


def layer_constants(H: int, Z: int) -> dict[str, scan.Blocks]:
    """The blocks of the layers from latents to hidden units and from those to latents."""
    return {"to_hidden": scan.layer_blocks(H, Z, 128), "to_latents": scan.layer_blocks(Z, H, 32)}


@triton.jit
def store_padded(to, place, columns, WIDTH, exists, active, value):  # type: ignore[no-untyped-def]
    """Write the columns of the steps ``place`` of a tensor [P, B, T, WIDTH], zeros past the ends of rows."""
    store_row(to + place * WIDTH, columns, WIDTH, exists, tl.where(active[:, None], value, 0.0))


@triton.jit
def combine(w, z, h, c, g, place, exists, active, size, blocks):  # type: ignore[no-untyped-def]
    """The first half of a step: from the rows ``z`` of latents and of ``h`` to all units of ``c``.

    The tanh is kept at the steps ``place`` of ``g`` [P, B, T, H], unless that is None.
    """
    for n in range(0, size.H, blocks.N):
        units = n + tl.arange(0, blocks.N)
        tanh = exact_tanh(linear(z, active, size.Z, w.w_z, w.b_z, units, size.H, blocks))
        if g is not None:
            store_padded(g, place, units, size.H, exists, active, tanh)
        store_row(c, units, size.H, active, 0.5 * (tanh + load_row(h, units, size.H, active)))


@triton.jit
def draw(w, c, eps, columns, active, size, blocks):  # type: ignore[no-untyped-def]
    """The second half: the given columns of ``loc + softplus(pre_scale) eps``, of loc and of pre_scale."""
    loc = linear(c, active, size.H, w.w_loc, w.b_loc, columns, size.Z, blocks)
    pre_scale = linear(c, active, size.H, w.w_scale, w.b_scale, columns, size.Z, blocks)
    noise = load_row(eps, columns, size.Z, active)
    return loc + softplus(pre_scale) * noise, loc, pre_scale


@triton.jit
def by_latents(w, da, valid, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of the gradient by the latents that a step began with, from its rows of ``da``."""
    return linear_backward(da, valid, size.H, w.w_z, columns, size.Z, blocks)


@triton.jit
def draw_backward(  # type: ignore[no-untyped-def]
    dx, dloc, dpre_scale, pre_scale, eps, out, place, columns, exists, active, size
):
    """The first half back: from ``dx``, the gradient by what was drawn, to ``deps`` and ``dout``.

    ``dloc, dpre_scale`` are rows of the incoming gradients.
    """
    Z, dout = size.Z, out.dout + place * 2 * size.Z
    dloc = load_row(dloc, columns, Z, active)
    dpre_scale = load_row(dpre_scale, columns, Z, active)
    s = load_row(pre_scale, columns, Z, active)
    noise = load_row(eps, columns, Z, active)
    store_row(dout, columns, Z, active, dloc + dx)
    store_row(dout + Z, columns, Z, active, dpre_scale + dx * noise * sigmoid(s))
    store_padded(out.deps, place, columns, Z, exists, active, dx * softplus(s))


@triton.jit
def combine_backward(w, g, out, place, exists, active, size, blocks):  # type: ignore[no-untyped-def]
    """The second half back: from ``dout`` to ``dh`` and ``da``."""
    H = size.H
    for n in range(0, H, blocks.N):
        units = n + tl.arange(0, blocks.N)
        dc = linear_backward(out.dout + place * 2 * size.Z, active, 2 * size.Z, w.w_out, units, H, blocks)
        store_padded(out.dh, place, units, H, exists, active, 0.5 * dc)
        g_here = load_row(g + place * H, units, H, active)
        store_row(out.da + place * H, units, H, active, 0.5 * dc * (1.0 - g_here * g_here))


@triton.jit
def starts_backward(w, steps, row, exists, length, out, size, blocks):  # type: ignore[no-untyped-def]
    """The gradients by what the chains started from, zero for rows without a step."""
    tl.debug_barrier()
    da = out.da + row * decoded(steps.steps) * size.H
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        dz_q_0 = by_latents(w, da, length > 0, columns, size, blocks)
        store_row(out.dz_q_0 + row * size.Z, columns, size.Z, exists, dz_q_0)
