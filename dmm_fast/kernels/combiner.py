"""The combiner q(z_t | z_{t-1}, x_{t:T}): single steps, and the log-density of a whole chain.

    c = (tanh(W_z z + b) + h_t) / 2    loc = W_loc c + b    pre_scale = W_scale c + b    z being z_{t-1}

Forward, c never leaves the program: a block of its H units at a time is multiplied into both heads.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import sigmoid, softplus, tanh
from dmm_fast.kernels.densities import normal_log_density, normal_slopes
from dmm_fast.kernels.layers import (
    BlocksFor,
    Network,
    backward_blocks,
    bias,
    copy_rows,
    forward_blocks,
    launch_network,
    linear,
    linear_backward,
    stacked,
    tile,
    weight_gradients,
)
from dmm_fast.kernels.rows import (
    Steps,
    at,
    before,
    block_of_places,
    constants,
    decoded,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    split_chain,
    steps_of,
    store_row,
    sum_steps,
    terms_of,
)
from dmm_fast.reference import CombinerWeights

__all__ = ["combiner", "combiner_backward", "combiner_log_prob", "combiner_log_prob_backward"]


class Sizes(NamedTuple):
    """Latents and hidden units."""

    Z: Any
    H: Any


class Scratch(NamedTuple):
    """A row of a backward pass: where its columns begin. The slope of c stands where dg does later."""

    z: Any
    c: Any
    dg: Any
    dloc: Any
    dpre_scale: Any


def network(weights: list[Tensor], blocks_for: BlocksFor) -> Network:
    """The network with these weights."""
    w = CombinerWeights(*(weight.contiguous() for weight in weights))
    H, Z = w.w_z.shape
    return Network(w, constants(Sizes(Z, H)), blocks_for(H, Z))


def weights_backward(
    kernel: Any, weights: list[Tensor], steps: Steps, count: int, *given: Any
) -> list[Tensor]:
    """The gradients of the weights, from what ``kernel(w, *given, scratch, ...)`` leaves in scratch."""
    H, Z = weights[0].shape
    at = Scratch(*stacked(Z, H, H, Z, Z))
    layers = [(at.dg, at.z), (at.dloc, at.c), (at.dpre_scale, at.c)]

    def fill(scratch: Tensor, first: int) -> None:
        net = network(weights, backward_blocks)
        launch_network(kernel, net, len(scratch), *given, scratch, first=first)

    return weight_gradients(fill, weights, steps, count, layers=layers)


@triton.jit
def combiner_head(z, h, valid, w, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale, from rows of z_{t-1} and of h_t."""
    Z, H = size.Z, size.H
    loc = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    pre_scale = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    for first in range(0, H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        g = tanh(linear(z, valid, Z, w.w_z, w.b_z, units, H, blocks))
        c = 0.5 * (g + load_row(h, units, H, valid))
        to_loc = tile(w.w_loc, columns, Z, H, units, H, 1)
        loc = tl.dot(c, to_loc, acc=loc, input_precision=blocks.precision)
        to_scale = tile(w.w_scale, columns, Z, H, units, H, 1)
        pre_scale = tl.dot(c, to_scale, acc=pre_scale, input_precision=blocks.precision)
    return loc + bias(w.b_loc, columns, Z), pre_scale + bias(w.b_scale, columns, Z)


@triton.jit
def scratch_of(scratch, place, size):  # type: ignore[no-untyped-def]
    """The columns of the rows ``place`` of scratch."""
    Z, H = size.Z, size.H
    own = scratch + place * (3 * Z + 2 * H)
    return Scratch(own, own + Z, own + Z + H, own + Z + 2 * H, own + 2 * Z + 2 * H)


@triton.jit
def combiner_again(z, h, valid, w, own, size, blocks):  # type: ignore[no-untyped-def]
    """Keep z_{t-1}, c, and the slope of c by what goes into the tanh, in scratch."""
    copy_rows(z, valid, own.z, size.Z, blocks)
    for first in range(0, size.H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        g = tanh(linear(z, valid, size.Z, w.w_z, w.b_z, units, size.H, blocks))
        store_row(own.c, units, size.H, valid, 0.5 * (g + load_row(h, units, size.H, valid)))
        store_row(own.dg, units, size.H, valid, 0.5 * (1.0 - g * g))
    tl.debug_barrier()


@triton.jit
def combiner_rows_backward(own, valid, w, dz, dh, size, blocks):  # type: ignore[no-untyped-def]
    """From the gradients by loc and pre_scale in scratch to all others there, and to rows ``dz, dh``."""
    Z, H = size.Z, size.H
    tl.debug_barrier()
    for first in range(0, H, blocks.H):
        units = first + tl.arange(0, blocks.H)
        dc = linear_backward(own.dloc, valid, Z, w.w_loc, units, H, blocks)
        dc += linear_backward(own.dpre_scale, valid, Z, w.w_scale, units, H, blocks)
        store_row(dh, units, H, valid, 0.5 * dc)
        store_row(own.dg, units, H, valid, load_row(own.dg, units, H, valid) * dc)
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        store_row(dz, columns, Z, valid, linear_backward(own.dg, valid, H, w.w_z, columns, Z, blocks))


# --- single steps ---------------------------------------------------------------------------------------


@rowwise_kernel
def combiner_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, h, steps, loc, scale, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows of z [1, N, 1, Z] and h [1, N, 1, H]: loc and scale [N, Z]."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    z_row, h_row = at(z, steps, row, step), at(h, steps, row, step)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        mean, pre_scale = combiner_head(z_row, h_row, valid, w, columns, size, blocks)
        store_row(loc + index * size.Z, columns, size.Z, valid, mean)
        store_row(scale + index * size.Z, columns, size.Z, valid, softplus(pre_scale))


@rowwise_kernel
def combiner_bwd_kernel(  # type: ignore[no-untyped-def]
    w, loc, scale, z, h, steps, dz, dh, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows, from the gradients ``loc, scale`` [1, N, 1, Z]: dz [N, Z], dh [N, H] and scratch."""
    Z, H = size.Z, size.H
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    combiner_again(at(z, steps, row, step), at(h, steps, row, step), valid, w, own, size, blocks)
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        pre_scale = linear(own.c, valid, H, w.w_scale, w.b_scale, columns, Z, blocks)
        dscale = load_row(at(scale, steps, row, step), columns, Z, valid)
        store_row(own.dloc, columns, Z, valid, load_row(at(loc, steps, row, step), columns, Z, valid))
        store_row(own.dpre_scale, columns, Z, valid, dscale * sigmoid(pre_scale))
    combiner_rows_backward(own, valid, w, dz + index * Z, dh + index * H, size, blocks)


def combiner(z_prev: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, scale``, each ``[N, Z]``."""
    loc, scale = z_prev.new_empty(z_prev.shape), z_prev.new_empty(z_prev.shape)
    z_steps, h_steps = z_prev[None, :, None], h[None, :, None]
    given = (rows_of(z_steps), rows_of(h_steps), steps_of(z_steps, None), loc, scale)
    launch_network(combiner_fwd_kernel, network(weights, forward_blocks), len(z_prev), *given)
    return loc, scale


def combiner_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, h: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``dz_prev [N, Z]``, ``dh [N, H]`` and the gradients of the weights."""
    dz_prev, dh = z_prev.new_empty(z_prev.shape), h.new_empty(h.shape)
    rows = (rows_of(tensor[None, :, None]) for tensor in (dloc, dscale, z_prev, h))
    steps = steps_of(z_prev[None, :, None], None)
    given = (*rows, steps, dz_prev, dh)
    return dz_prev, dh, weights_backward(combiner_bwd_kernel, weights, steps, len(z_prev), *given)


# --- a chain --------------------------------------------------------------------------------------------


@rowwise_kernel
def combiner_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, h, z_0, steps, terms, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps: terms [P, B, T] is the log-density of each."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    z_before, h_row = before(z, z_0, steps, row, step), at(h, steps, row, step)
    acc = tl.zeros((BLOCK_M, blocks.N), tl.float32)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = combiner_head(z_before, h_row, valid, w, columns, size, blocks)
        value = load_row(at(z, steps, row, step), columns, size.Z, valid)
        acc += tl.where((columns < size.Z)[None, :], normal_log_density(value, loc, pre_scale), 0.0)
    tl.store(terms + row * decoded(steps.steps) + step, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def combiner_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, z, h, z_0, steps, dvalue, dbefore, dh, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps, from dout [P, B]: gradients by z_t, z_{t-1}, h_t [P, B, T, *], and scratch."""
    Z, H = size.Z, size.H
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    combiner_again(before(z, z_0, steps, row, step), at(h, steps, row, step), valid, w, own, size, blocks)
    place = row * decoded(steps.steps) + step
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc = linear(own.c, valid, H, w.w_loc, w.b_loc, columns, Z, blocks)
        pre_scale = linear(own.c, valid, H, w.w_scale, w.b_scale, columns, Z, blocks)
        value = load_row(at(z, steps, row, step), columns, Z, valid)
        by_loc, by_pre_scale = normal_slopes(value, loc, pre_scale)
        store_row(own.dloc, columns, Z, valid, d * by_loc)
        store_row(own.dpre_scale, columns, Z, valid, d * by_pre_scale)
        store_row(dvalue + place * Z, columns, Z, valid, -d * by_loc)
    combiner_rows_backward(own, valid, w, dbefore + place * Z, dh + place * H, size, blocks)


def combiner_log_prob(z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of log q(z_t | z_{t-1}, x_{t:T})."""
    terms = terms_of(z)
    given = (rows_of(z), rows_of(h), rows_of(z_q_0), steps_of(z, lengths), terms)
    launch_network(combiner_log_prob_fwd_kernel, network(weights, forward_blocks), terms.numel(), *given)
    return sum_steps(terms, z, lengths)


def combiner_log_prob_backward(
    dout: Tensor, z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``dz [P, B, T, Z]``, ``dh [P, B, T, H]``, ``dz_q_0 [P, B, Z]`` and the gradients of the weights."""
    P, B, T, _ = z.shape
    dvalue, dbefore = (z.new_empty(z.shape, dtype=torch.float32) for _ in range(2))
    dh = h.new_zeros(h.shape)
    rows = (rows_of(z), rows_of(h), rows_of(z_q_0))
    steps = steps_of(z, lengths)
    given = (dout.contiguous(), *rows, steps, dvalue, dbefore, dh)
    dweights = weights_backward(combiner_log_prob_bwd_kernel, weights, steps, P * B * T, *given)
    dz, dz_q_0 = split_chain(dvalue, dbefore, z, lengths)
    return dz, dh, dz_q_0, dweights
