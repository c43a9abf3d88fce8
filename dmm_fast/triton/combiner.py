"""The combiner q(z_t | z_{t-1}, x_{t:T}): single steps, and the log-density of a whole chain.

    c = (tanh(W_z z + b) + h_t) / 2    loc = W_loc c + b    pre_scale = W_scale c + b    with z = z_{t-1}

In the forward pass c is not stored: a block of its H units at a time is multiplied into both heads.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import CombinerWeights
from dmm_fast.triton import layers, rows, sums
from dmm_fast.triton.common import sigmoid, softplus, tanh
from dmm_fast.triton.densities import normal_log_density, normal_slopes


class Sizes(NamedTuple):
    """Latents and hidden units."""

    Z: Any
    H: Any


class Scratch(NamedTuple):
    """The column offsets of a scratch row of a backward pass. dg later overwrites the derivative of c."""

    z: Any
    c: Any
    dg: Any
    dloc: Any
    dpre_scale: Any


def network(weights: list[Tensor], blocks_for: layers.BlocksFor) -> layers.Network:
    """The kernels' network with these weights."""
    w = CombinerWeights(*(weight.contiguous() for weight in weights))
    H, Z = w.w_z.shape
    return layers.Network(w, rows.constants(Sizes(Z, H)), blocks_for(H, Z))


def weights_backward(
    kernel: Any, weights: list[Tensor], steps: rows.Steps, count: int, *given: Any
) -> list[Tensor]:
    """The gradients of the weights, from the scratch rows that ``kernel(w, *given, scratch, ...)`` writes."""
    H, Z = weights[0].shape
    at = Scratch(*layers.stacked(Z, H, H, Z, Z))
    pairs = [(at.dg, at.z), (at.dloc, at.c), (at.dpre_scale, at.c)]

    def fill(scratch: Tensor, first: int) -> None:
        net = network(weights, layers.backward_blocks)
        layers.launch_network(kernel, net, len(scratch), *given, scratch, first=first)

    return layers.weight_gradients(fill, weights, steps, count, layers=pairs)


@triton.jit
def combiner_head(z, h, valid, w, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale, from rows of z_{t-1} and of h_t."""
    Z, H = size.Z, size.H
    loc = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    pre_scale = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    for first in range(0, H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        g = tanh(layers.linear(z, valid, Z, w.w_z, w.b_z, units, H, blocks))
        c = 0.5 * (g + rows.load_row(h, units, H, valid))
        to_loc = layers.tile(w.w_loc, columns, Z, H, units, H, 1)
        loc = tl.dot(c, to_loc, acc=loc, input_precision=blocks.precision)
        to_scale = layers.tile(w.w_scale, columns, Z, H, units, H, 1)
        pre_scale = tl.dot(c, to_scale, acc=pre_scale, input_precision=blocks.precision)
    return loc + layers.bias(w.b_loc, columns, Z), pre_scale + layers.bias(w.b_scale, columns, Z)


@triton.jit
def scratch_of(scratch, place, size):  # type: ignore[no-untyped-def]
    """Pointers to the columns of the rows ``place`` of scratch."""
    Z, H = size.Z, size.H
    z = scratch + place * (3 * Z + 2 * H)
    c = z + Z
    dg = c + H
    dloc = dg + H
    return Scratch(z, c, dg, dloc, dloc + Z)


@triton.jit
def combiner_recompute(z, h, valid, w, scratch_row, size, blocks):  # type: ignore[no-untyped-def]
    """Store z_{t-1}, c, and the derivative of c with respect to the tanh's argument in scratch."""
    layers.copy_rows(z, valid, scratch_row.z, size.Z, blocks)
    for first in range(0, size.H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        g = tanh(layers.linear(z, valid, size.Z, w.w_z, w.b_z, units, size.H, blocks))
        c = 0.5 * (g + rows.load_row(h, units, size.H, valid))
        rows.store_row(scratch_row.c, units, size.H, valid, c)
        rows.store_row(scratch_row.dg, units, size.H, valid, 0.5 * (1.0 - g * g))
    tl.debug_barrier()


@triton.jit
def combiner_rows_backward(scratch_row, valid, w, dz, dh, size, blocks):  # type: ignore[no-untyped-def]
    """Compute all other gradients in scratch, and rows ``dz, dh``, from those of loc and pre_scale."""
    Z, H = size.Z, size.H
    tl.debug_barrier()
    for first in range(0, H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        dc = layers.linear_backward(scratch_row.dloc, valid, Z, w.w_loc, units, H, blocks)
        dc += layers.linear_backward(scratch_row.dpre_scale, valid, Z, w.w_scale, units, H, blocks)
        rows.store_row(dh, units, H, valid, 0.5 * dc)
        rows.store_row(scratch_row.dg, units, H, valid, rows.load_row(scratch_row.dg, units, H, valid) * dc)
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        out = layers.linear_backward(scratch_row.dg, valid, H, w.w_z, columns, Z, blocks)
        rows.store_row(dz, columns, Z, valid, out)


# --- single steps ---------------------------------------------------------------------------------------


@rows.rowwise_kernel
def combiner_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, h, steps, loc, scale, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows of z [1, N, 1, Z] and h [1, N, 1, H]: loc and scale [N, Z]."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, valid = rows.places(steps, index)
    z_row, h_row = rows.at(z, steps, row, step), rows.at(h, steps, row, step)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        mean, pre_scale = combiner_head(z_row, h_row, valid, w, columns, size, blocks)
        rows.store_row(loc + index * size.Z, columns, size.Z, valid, mean)
        rows.store_row(scale + index * size.Z, columns, size.Z, valid, softplus(pre_scale))


@rows.rowwise_kernel
def combiner_bwd_kernel(  # type: ignore[no-untyped-def]
    w, loc, scale, z, h, steps, dz, dh, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows, from the gradients ``loc, scale`` [1, N, 1, Z]: dz [N, Z], dh [N, H] and scratch."""
    Z, H = size.Z, size.H
    index = rows.block_of_places(first, BLOCK_M)
    row, step, valid = rows.places(steps, index)
    scratch_row = scratch_of(scratch, index - first, size)
    z_row, h_row = rows.at(z, steps, row, step), rows.at(h, steps, row, step)
    combiner_recompute(z_row, h_row, valid, w, scratch_row, size, blocks)
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        pre_scale = layers.linear(scratch_row.c, valid, H, w.w_scale, w.b_scale, columns, Z, blocks)
        dloc = rows.load_row(rows.at(loc, steps, row, step), columns, Z, valid)
        dscale = rows.load_row(rows.at(scale, steps, row, step), columns, Z, valid)
        rows.store_row(scratch_row.dloc, columns, Z, valid, dloc)
        rows.store_row(scratch_row.dpre_scale, columns, Z, valid, dscale * sigmoid(pre_scale))
    combiner_rows_backward(scratch_row, valid, w, dz + index * Z, dh + index * H, size, blocks)


def combiner(z_prev: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, scale``, each ``[N, Z]``."""
    loc, scale = z_prev.new_empty(z_prev.shape), z_prev.new_empty(z_prev.shape)
    z_steps, h_steps = z_prev[None, :, None], h[None, :, None]
    given = (rows.rows_of(z_steps), rows.rows_of(h_steps), rows.steps_of(z_steps, None), loc, scale)
    layers.launch_network(combiner_fwd_kernel, network(weights, layers.forward_blocks), len(z_prev), *given)
    return loc, scale


def combiner_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, h: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``dz_prev [N, Z]``, ``dh [N, H]`` and the gradients of the weights."""
    dz_prev, dh = z_prev.new_empty(z_prev.shape), h.new_empty(h.shape)
    read = (rows.rows_of(tensor[None, :, None]) for tensor in (dloc, dscale, z_prev, h))
    steps = rows.steps_of(z_prev[None, :, None], None)
    given = (*read, steps, dz_prev, dh)
    return dz_prev, dh, weights_backward(combiner_bwd_kernel, weights, steps, len(z_prev), *given)


# --- a chain --------------------------------------------------------------------------------------------


@rows.rowwise_kernel
def combiner_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, h, z_q_0, steps, terms, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps: terms [P, B, T] is the log-density of each."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, valid = rows.places(steps, index)
    z_before, h_row = rows.before(z, z_q_0, steps, row, step), rows.at(h, steps, row, step)
    acc = tl.zeros((BLOCK_M, blocks.N), tl.float32)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = combiner_head(z_before, h_row, valid, w, columns, size, blocks)
        value = rows.load_row(rows.at(z, steps, row, step), columns, size.Z, valid)
        acc += tl.where((columns < size.Z)[None, :], normal_log_density(value, loc, pre_scale), 0.0)
    tl.store(terms + row * rows.decoded(steps.steps) + step, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def combiner_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, z, h, z_q_0, steps, dvalue, dbefore, dh, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps, from dout [P, B]: gradients of z_t, z_{t-1}, h_t [P, B, T, *], and scratch."""
    Z, H = size.Z, size.H
    index = rows.block_of_places(first, BLOCK_M)
    row, step, valid = rows.places(steps, index)
    scratch_row = scratch_of(scratch, index - first, size)
    z_before, h_row = rows.before(z, z_q_0, steps, row, step), rows.at(h, steps, row, step)
    combiner_recompute(z_before, h_row, valid, w, scratch_row, size, blocks)
    place = row * rows.decoded(steps.steps) + step
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc = layers.linear(scratch_row.c, valid, H, w.w_loc, w.b_loc, columns, Z, blocks)
        pre_scale = layers.linear(scratch_row.c, valid, H, w.w_scale, w.b_scale, columns, Z, blocks)
        value = rows.load_row(rows.at(z, steps, row, step), columns, Z, valid)
        by_loc, by_pre_scale = normal_slopes(value, loc, pre_scale)
        rows.store_row(scratch_row.dloc, columns, Z, valid, d * by_loc)
        rows.store_row(scratch_row.dpre_scale, columns, Z, valid, d * by_pre_scale)
        rows.store_row(dvalue + place * Z, columns, Z, valid, -d * by_loc)
    combiner_rows_backward(scratch_row, valid, w, dbefore + place * Z, dh + place * H, size, blocks)


def combiner_log_prob(z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of log q(z_t | z_{t-1}, x_{t:T})."""
    terms = sums.terms_of(z)
    given = (rows.rows_of(z), rows.rows_of(h), rows.rows_of(z_q_0), rows.steps_of(z, lengths), terms)
    net = network(weights, layers.forward_blocks)
    layers.launch_network(combiner_log_prob_fwd_kernel, net, terms.numel(), *given)
    return sums.sum_steps(terms, z, lengths)


def combiner_log_prob_backward(
    dout: Tensor, z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``dz [P, B, T, Z]``, ``dh [P, B, T, H]``, ``dz_q_0 [P, B, Z]`` and the gradients of the weights."""
    P, B, T, _ = z.shape
    dvalue, dbefore = (z.new_empty(z.shape, dtype=torch.float32) for _ in range(2))
    dh = h.new_zeros(h.shape)
    steps = rows.steps_of(z, lengths)
    read = (dout.contiguous(), *map(rows.rows_of, (z, h, z_q_0)), steps)
    given = (*read, dvalue, dbefore, dh)
    dweights = weights_backward(combiner_log_prob_bwd_kernel, weights, steps, P * B * T, *given)
    dz, dz_q_0, _ = sums.split_chain(dvalue, dbefore, z_q_0, lengths)
    return dz, dh, dz_q_0, dweights
