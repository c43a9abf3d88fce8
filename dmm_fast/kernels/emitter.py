"""The emitters p(x_t | z_t) for single steps ``[N, Z]``, and of a block of rows: what their ops share.

    h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b

A Bernoulli's out is the logits; a Gaussian has a second head for pre_scale. h_1 never leaves the program
in a forward pass; h_2 is complete only after a pass over h_1, and goes through memory.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.layers import (
    BlocksFor,
    Network,
    backward_blocks,
    copy_rows,
    forward_blocks,
    hidden_rows,
    hidden_rows_backward,
    launch_network,
    linear,
    linear_backward,
    relu,
    stacked,
    two_layers,
    weight_gradients,
)
from dmm_fast.kernels.rows import (
    at,
    block_of_places,
    constants,
    decoded_steps,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
)

__all__ = ["emitter", "emitter_backward"]


class Weights(NamedTuple):
    """Of either emitter: ``w_out`` gives logits or loc; a Bernoulli has no ``w_scale`` and ``b_scale``."""

    w_in: Any
    b_in: Any
    w_hidden: Any
    b_hidden: Any
    w_out: Any
    b_out: Any
    w_scale: Any = None
    b_scale: Any = None


class Sizes(NamedTuple):
    """Latents, hidden units, outputs, and columns of scratch a row."""

    Z: Any
    E: Any
    D: Any
    scratch: Any


class Scratch(NamedTuple):
    """A row of a backward pass: where its columns begin. A Bernoulli's has no dpre_scale."""

    z: Any
    h_1: Any
    h_2: Any
    dh_1: Any
    dh_2: Any
    dout: Any
    dpre_scale: Any


def widths(weights: list[Tensor]) -> list[int]:
    """How wide the columns of scratch are."""
    (E, Z), D = weights[0].shape, weights[4].shape[0]
    return [Z, E, E, E, E, D, D if len(weights) == 8 else 0]


def network(weights: list[Tensor], blocks_for: BlocksFor) -> Network:
    """The network with these weights."""
    w = Weights(*(weight.contiguous() for weight in weights))
    (E, Z), D = w.w_in.shape, w.w_out.shape[0]
    return Network(w, constants(Sizes(Z, E, D, sum(widths(weights)))), blocks_for(E, max(Z, E, D)))


def emitter_forward(kernel: Any, weights: list[Tensor], count: int, *given: Any) -> None:
    """Run ``kernel(w, *given, work, first, size, blocks)``; ``work [count, E]`` is for emitter_rows."""
    work = weights[0].new_empty(count, weights[0].shape[0], dtype=torch.float32)
    launch_network(kernel, network(weights, forward_blocks), count, *given, work)


def weights_backward(kernel: Any, weights: list[Tensor], count: int, *given: Any) -> list[Tensor]:
    """The gradients of the weights, from what ``kernel(w, *given, scratch, ...)`` leaves in scratch."""
    at = Scratch(*stacked(*widths(weights)))
    layers = [(at.dh_1, at.z), (at.dh_2, at.h_1), (at.dout, at.h_2), (at.dpre_scale, at.h_2)]
    layers = layers[: len(weights) // 2]
    return weight_gradients(kernel, network(weights, backward_blocks), count, *given, layers=layers)


@triton.jit
def emitter_rows(z, valid, w, h_2, size, blocks):  # type: ignore[no-untyped-def]
    """Write the second hidden layer of the rows ``z`` to ``h_2``."""
    Z, E = size.Z, size.E
    for n in range(0, E, blocks.N):
        units = n + tl.arange(0, blocks.N)
        hidden = two_layers(z, valid, Z, w.w_in, w.b_in, E, w.w_hidden, w.b_hidden, units, E, blocks)
        store_row(h_2, units, E, valid, relu(hidden))
    tl.debug_barrier()


@triton.jit
def emitter_head(h_2, valid, w, b, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of the head with the weight ``w`` and the bias ``b``."""
    return linear(h_2, valid, size.E, w, b, columns, size.D, blocks)


@triton.jit
def scratch_of(scratch, place, size):  # type: ignore[no-untyped-def]
    """The columns of the rows ``place`` of scratch."""
    own = scratch + place * size.scratch
    h_1 = own + size.Z
    dout = h_1 + 4 * size.E
    return Scratch(own, h_1, h_1 + size.E, h_1 + 2 * size.E, h_1 + 3 * size.E, dout, dout + size.D)


@triton.jit
def emitter_again(z, valid, w, own, size, blocks):  # type: ignore[no-untyped-def]
    """Compute rows ``z`` once more and keep both hidden layers in scratch."""
    copy_rows(z, valid, own.z, size.Z, blocks)
    hidden_rows(z, valid, size.Z, w.w_in, w.b_in, own.h_1, size.E, blocks)
    tl.debug_barrier()
    hidden_rows(own.h_1, valid, size.E, w.w_hidden, w.b_hidden, own.h_2, size.E, blocks)
    tl.debug_barrier()


@triton.jit
def emitter_rows_backward(own, valid, w, dz, size, blocks):  # type: ignore[no-untyped-def]
    """From the gradients by the heads in scratch to all others there, and to the rows ``dz``."""
    Z, E, D = size.Z, size.E, size.D
    tl.debug_barrier()
    for h in range(0, E, blocks.N):
        units = h + tl.arange(0, blocks.N)
        gradient = linear_backward(own.dout, valid, D, w.w_out, units, E, blocks)
        if w.w_scale is not None:
            gradient += linear_backward(own.dpre_scale, valid, D, w.w_scale, units, E, blocks)
        gradient = tl.where(load_row(own.h_2, units, E, valid) > 0.0, gradient, 0.0)
        store_row(own.dh_2, units, E, valid, gradient)
    tl.debug_barrier()
    hidden_rows_backward(own.dh_2, valid, E, w.w_hidden, own.h_1, own.dh_1, E, blocks)
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        store_row(dz, columns, Z, valid, linear_backward(own.dh_1, valid, E, w.w_in, columns, Z, blocks))


@rowwise_kernel
def emitter_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, steps, out, pre_scale, work, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows of z [1, N, 1, Z]: out and a Gaussian's pre_scale [N, D]; work is [N, E] of its own."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    h_2 = work + index * size.E
    emitter_rows(at(z, steps, row, step), valid, w, h_2, size, blocks)
    for n in range(0, size.D, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        value = emitter_head(h_2, valid, w.w_out, w.b_out, columns, size, blocks)
        store_row(out + index * size.D, columns, size.D, valid, value)
        if w.w_scale is not None:
            value = emitter_head(h_2, valid, w.w_scale, w.b_scale, columns, size, blocks)
            store_row(pre_scale + index * size.D, columns, size.D, valid, value)


@rowwise_kernel
def emitter_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, dpre_scale, z, steps, dz, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows, from dout and a Gaussian's dpre_scale [1, N, 1, D]: dz [N, Z], its rows of scratch."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    emitter_again(at(z, steps, row, step), valid, w, own, size, blocks)
    copy_rows(at(dout, steps, row, step), valid, own.dout, size.D, blocks)
    if w.w_scale is not None:
        copy_rows(at(dpre_scale, steps, row, step), valid, own.dpre_scale, size.D, blocks)
    emitter_rows_backward(own, valid, w, dz + index * size.Z, size, blocks)


def emitter(z: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """The logits; or loc and pre_scale. Each is ``[N, D]``."""
    N, steps = len(z), z[None, :, None]
    out = [z.new_empty(N, head.shape[0]) for head in weights[4::2]]
    pre_scale = out[1] if len(out) == 2 else None
    given = (rows_of(steps), steps_of(steps, None), out[0], pre_scale)
    emitter_forward(emitter_fwd_kernel, weights, N, *given)
    return out


def emitter_backward(dout: list[Tensor], z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``dz [N, Z]`` and the gradients of the weights."""
    N, steps = len(z), z[None, :, None]
    dz = z.new_empty(z.shape)
    heads = [rows_of(gradient[None, :, None]) for gradient in dout]
    dpre_scale = heads[1] if len(heads) == 2 else None
    given = (heads[0], dpre_scale, rows_of(steps), steps_of(steps, None), dz)
    return dz, weights_backward(emitter_bwd_kernel, weights, N, *given)
