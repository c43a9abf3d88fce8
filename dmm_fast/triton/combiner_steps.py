"""Halves of a step of the combiner, forward and backward, for the scans that draw its chain.

In the forward pass the weights are stored by inputs, see :func:`dmm_fast.triton.scan.stored_by_inputs`.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dmm_fast.triton import scan
from dmm_fast.triton.common import exact_tanh, sigmoid, softplus
from dmm_fast.triton.layers import linear_backward
from dmm_fast.triton.rows import Rows, at, load_row, store_row
from dmm_fast.triton.scan import store_padded


class Drawn(NamedTuple):
    """The results of a draw, ``[P, B, T, Z]``; ``z`` is None if flows follow."""

    z: Any
    loc: Any
    pre_scale: Any


class BackwardWeights(NamedTuple):
    """The weights for a backward pass: ``w_z [H, Z]``, and ``w_out [2 Z, H]``, w_loc stacked on w_scale."""

    w_z: Any
    w_out: Any


class Incoming(NamedTuple):
    """The gradients of z, loc and pre_scale, ``[P, B, T, Z]``."""

    dz: Rows
    dloc: Rows
    dpre_scale: Rows


class Gradients(NamedTuple):
    """The results of the backward pass, and the factors of the weight gradients, in float32.

    ``da [P, B, T, H]`` is the gradient of the argument of the tanh, ``dout [P, B, T, 2 Z]`` that of loc and
    pre_scale, including all paths. Both are written at valid steps only.
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
    """Allocate the gradients for ``h [P, B, T, H]`` and ``eps [P, B, T, Z]``."""
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    return Gradients(
        dh=h.new_empty((P, B, T, H)),
        deps=eps.new_empty((P, B, T, Z)),
        dz_q_0=eps.new_empty((P, B, Z)),
        da=eps.new_empty((P, B, T, H), dtype=torch.float32),
        dout=eps.new_empty((P, B, T, 2 * Z), dtype=torch.float32),
    )


@scan.step_kernel
def combine_kernel(w, z, h, c, g, steps, t, blocks, size):  # type: ignore[no-untyped-def]
    """The first half of step ``t``: a tile of the hidden units of all rows from their latents.

    Reads ``z [P B, Z]`` and h [P, B, T, H], writes ``c [P B, H]``, and stores the tanh in
    ``g [P, B, T, H]`` unless that is None.
    """
    row, exists, length, units = scan.tile_of_step(steps, blocks)
    active, H = t < length, size.H
    tanh = exact_tanh(scan.linear(z + row * size.Z, active, size.Z, w.w_z, w.b_z, units, H, blocks))
    if g is not None:
        store_padded(g, scan.place_of(steps, row, t), units, H, exists, active, tanh)
    h_here = load_row(at(h, steps, row, t), units, H, active)
    store_row(c + row * H, units, H, active, 0.5 * (tanh + h_here))


@scan.step_kernel
def draw_kernel(w, c, eps, to, out, steps, t, blocks, size):  # type: ignore[no-untyped-def]
    """The second half: a tile of ``loc + softplus(pre_scale) eps`` from the hidden units ``c [P B, H]``.

    The result is written to ``to [P B, Z]`` and, with loc and pre_scale, to the :class:`Drawn` tensors
    ``out``.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    active, place, Z = t < length, scan.place_of(steps, row, t), size.Z
    loc, pre_scale = scan.linear_pair(
        c + row * size.H, active, size.H, w.w_loc, w.b_loc, w.w_scale, w.b_scale, columns, Z, blocks
    )
    drawn = loc + softplus(pre_scale) * load_row(at(eps, steps, row, t), columns, Z, active)
    store_row(to + row * Z, columns, Z, active, drawn)
    store_padded(out.loc, place, columns, Z, exists, active, loc)
    store_padded(out.pre_scale, place, columns, Z, exists, active, pre_scale)
    if out.z is not None:
        store_padded(out.z, place, columns, Z, exists, active, drawn)


@triton.jit
def by_latents(w, incoming, out, steps, row, t, length, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of the gradient of the latents of step ``t``, with the part from the step after."""
    carried = t + 1 < length  # the last step of a row has no step after it
    da = out.da + scan.place_of(steps, row, t + 1) * size.H
    dz = linear_backward(da, carried, size.H, w.w_z, columns, size.Z, blocks)
    return dz + load_row(at(incoming.dz, steps, row, t), columns, size.Z, t < length)


@triton.jit
def draw_backward(  # type: ignore[no-untyped-def]
    dx, incoming, eps, pre_scale, out, steps, row, t, columns, exists, active, size
):
    """Compute ``deps`` and ``dout`` from ``dx``, the gradient of the given columns of step ``t``."""
    Z, place = size.Z, scan.place_of(steps, row, t)
    dloc = load_row(at(incoming.dloc, steps, row, t), columns, Z, active)
    dpre_scale = load_row(at(incoming.dpre_scale, steps, row, t), columns, Z, active)
    s = load_row(at(pre_scale, steps, row, t), columns, Z, active)
    noise = load_row(at(eps, steps, row, t), columns, Z, active)
    dout = out.dout + place * 2 * Z
    store_row(dout, columns, Z, active, dloc + dx)
    store_row(dout + Z, columns, Z, active, dpre_scale + dx * noise * sigmoid(s))
    store_padded(out.deps, place, columns, Z, exists, active, dx * softplus(s))


@scan.step_kernel
def combine_bwd_kernel(w, g, out, steps, t, blocks, size):  # type: ignore[no-untyped-def]
    """Compute a tile of ``dh`` and ``da`` from ``dout`` of step ``t``."""
    row, exists, length, units = scan.tile_of_step(steps, blocks)
    active, place, H = t < length, scan.place_of(steps, row, t), size.H
    dc = linear_backward(out.dout + place * 2 * size.Z, active, 2 * size.Z, w.w_out, units, H, blocks)
    store_padded(out.dh, place, units, H, exists, active, 0.5 * dc)
    g_here = load_row(g + place * H, units, H, active)
    store_row(out.da + place * H, units, H, active, 0.5 * dc * (1.0 - g_here * g_here))


@scan.step_kernel
def starts_bwd_kernel(w, out, steps, blocks, size):  # type: ignore[no-untyped-def]
    """A tile of ``dz_q_0``, the gradient of the chains' initial states; zero for rows without a step."""
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    da = out.da + scan.place_of(steps, row, 0) * size.H
    dz_q_0 = linear_backward(da, length > 0, size.H, w.w_z, columns, size.Z, blocks)
    store_row(out.dz_q_0 + row * size.Z, columns, size.Z, exists, dz_q_0)
