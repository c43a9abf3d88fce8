"""The emitters p(x_t | z_t) for single steps ``[N, Z]``, and what their ops share.

    h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b

A Bernoulli's out is the logits; a Gaussian has a second head for pre_scale. Each line is a launch, the last
one the op's own; backward they run once more, and a launch for each layer then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.layers import in_parts, stacked, weight_gradients
from dmm_fast.kernels.rows import Rows, Steps, load_row, rows_of, rowwise_kernel, steps_of
from dmm_fast.kernels.tiles import (
    Columns,
    Gradient,
    Layer,
    Term,
    backward,
    columns_of,
    columns_of_tile,
    features_of,
    first_layers,
    forward,
    launch_tiles,
    layer_of,
    room,
    row_at,
    rows_of_tile,
    spots_of,
    write,
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


class Taken(NamedTuple):
    """The gradients that an op's head leaves. A Bernoulli's has no dpre_scale."""

    dout: Columns
    dpre_scale: Columns | None


Head = Callable[[Weights, Columns, Tensor], None]
"""Launches what an op does with h_2 at some places."""

HeadBackward = Callable[[Weights, Columns, Taken, Tensor], None]


def emitter_forward(head: Head, weights: list[Tensor], count: int, z: Rows, steps: Steps) -> None:
    """Run the hidden layers for z, and the op's head."""
    w = Weights(*(weight.contiguous() for weight in weights))
    E = w.w_in.shape[0]
    for first, size in in_parts(count):
        work, found = room(w.w_in, size, 2 * E)
        h_1, h_2 = (columns_of(work, at) for at in stacked(E, E))
        hidden_layers(w, (z, steps, first), None, h_1, h_2, found)
        head(w, h_2, found)


def hidden_layers(
    w: Weights, inputs: tuple[Rows, Steps, int], own: Columns | None, h_1: Columns, h_2: Columns, found: Tensor
) -> None:
    """Launch the hidden layers of z from a place on, whose rows go to ``own`` unless it is None."""
    z, steps, first = inputs
    first_layers(z, None, steps, [Layer(w.w_in, w.b_in, True, h_1)], own, first, found)
    forward(h_1, [Layer(w.w_hidden, w.b_hidden, True, h_2)], found)


def emitter_gradients(
    head: HeadBackward, weights: list[Tensor], count: int, z: Rows, steps: Steps, dz: Tensor
) -> list[Tensor]:
    """The gradients of the weights; that by z goes to ``dz [..., Z]``."""
    w = Weights(*(weight.contiguous() for weight in weights))
    (E, Z), D = w.w_in.shape, w.w_out.shape[0]
    heads = [D] if w.w_scale is None else [D, D]
    columns = stacked(Z, E, E, E, E, *heads)

    def fill(scratch: Tensor, first: int) -> None:
        own, h_1, h_2, dh_1, dh_2, *dheads = (columns_of(scratch, at) for at in columns)
        _, found = room(w.w_in, len(scratch), 0)
        hidden_layers(w, (z, steps, first), own, h_1, h_2, found)
        head(w, h_2, Taken(dheads[0], dheads[1] if len(dheads) == 2 else None), found)
        of_heads = tuple(Term(*term) for term in zip(dheads, (w.w_out, w.w_scale), strict=False))
        backward([Gradient(of_heads, dh_2, (h_2,))], found)
        backward([Gradient((Term(dh_2, w.w_hidden),), dh_1, (h_1,))], found)
        backward([Gradient((Term(dh_1, w.w_in),), features_of(dz))], found, by_place=True)

    at_z, at_1, at_2, at_d1, at_d2, *at_heads = columns
    layers = [(at_d1, at_z), (at_d2, at_1), *((at_head, at_2) for at_head in at_heads)]
    return weight_gradients(fill, weights, steps, count, layers=layers)


@rowwise_kernel
def emitter_fwd_kernel(  # type: ignore[no-untyped-def]
    h_2,
    w,
    b,
    out,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a head [N, D]."""
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    columns = columns_of_tile(BLOCK_N)
    value = layer_of(h_2, index, valid, w, b, columns, out.width, BLOCK_K, PRECISION)
    write(out, place, valid, columns, value)


@rowwise_kernel
def emitter_bwd_kernel(  # type: ignore[no-untyped-def]
    dhead,
    to,
    steps,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of the gradient by a head [1, N, 1, D], into scratch."""
    index, _, valid = rows_of_tile(found, count, BLOCK_M)
    columns = columns_of_tile(BLOCK_N)
    rows = row_at(dhead, spots_of(found, count, index, valid))
    write(to, index, valid, columns, load_row(rows, columns, to.width, valid))


def emitter(z: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """The logits; or loc and pre_scale. Each is ``[N, D]``."""
    N, rows = len(z), z[None, :, None]
    out = [z.new_empty(N, head.shape[0]) for head in weights[4::2]]

    def head(w: Weights, h_2: Columns, found: Tensor) -> None:
        for to, weight, b in zip(out, w[4::2], w[5::2], strict=False):
            launch_tiles(emitter_fwd_kernel, found, to.shape[1:], h_2, weight, b, features_of(to))

    emitter_forward(head, weights, N, rows_of(rows), steps_of(rows, None))
    return out


def emitter_backward(dout: list[Tensor], z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``dz [N, Z]`` and the gradients of the weights."""
    N, rows = len(z), z[None, :, None]
    dz, steps = z.new_empty(z.shape), steps_of(rows, None)

    def head(w: Weights, h_2: Columns, taken: Taken, found: Tensor) -> None:
        for gradient, to in zip(dout, taken, strict=False):
            dhead = rows_of(gradient[None, :, None])
            launch_tiles(emitter_bwd_kernel, found, gradient.shape[1:], dhead, to, steps)

    return dz, emitter_gradients(head, weights, N, rows_of(rows), steps, dz)
