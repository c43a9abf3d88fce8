"""The emitters p(x_t | z_t) for single steps ``[N, Z]``, and what their ops share.

    h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b

A Bernoulli's out is the logits; a Gaussian has a second head for pre_scale. The first line is a launch, the
rest is the op's own, of which a program has whole rows; backward it goes on to z.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tiles
from dmm_fast.triton.layers import in_parts, relu, stacked, weight_gradients
from dmm_fast.triton.rows import Rows, Steps, load_row, rows_of, rowwise_kernel, steps_of
from dmm_fast.triton.tiles import Columns, Gradient, Layer, Term


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


class Hidden(NamedTuple):
    """The hidden layers."""

    h_1: Columns
    h_2: Columns


class Taken(NamedTuple):
    """The gradients that an op's head leaves, and those by way of them. A Bernoulli's has no dpre_scale."""

    dout: Columns
    dpre_scale: Columns | None
    beyond: tuple[Gradient, ...]


Head = Callable[[Weights, Hidden, Tensor], None]
"""Launches, from h_1 at some places, the second hidden layer and what an op does with that."""

HeadBackward = Callable[[Weights, Hidden, Taken, Tensor], None]


def forward(head: Head, weights: list[Tensor], count: int, z: Rows, steps: Steps) -> None:
    """Run the hidden layers for z, and the op's head."""
    w = Weights(*(weight.contiguous() for weight in weights))
    E = w.w_in.shape[0]
    for first, size in in_parts(count):
        work, found = tiles.room(w.w_in, size, 2 * E)
        hidden = Hidden(*(tiles.columns_of(work, at) for at in stacked(E, E)))
        layers = [Layer(w.w_in, w.b_in, True, hidden.h_1)]
        tiles.first_layers(z, None, steps, layers, None, first, found)
        head(w, hidden, found)


@triton.jit
def hidden_layers(w, hidden, index, valid, BLOCK_N, BLOCK_K, PRECISION):  # type: ignore[no-untyped-def]
    """Whole rows: the second hidden layer from the first."""
    E = hidden.h_2.width
    for n in range(0, hidden.h_2.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        out = tiles.layer_of(hidden.h_1, index, valid, w.w_hidden, w.b_hidden, columns, E, BLOCK_K, PRECISION)
        tiles.write(hidden.h_2, index, valid, columns, relu(out))
    tl.debug_barrier()


def gradients(
    head: HeadBackward, weights: list[Tensor], count: int, z: Rows, steps: Steps, dz: Tensor
) -> list[Tensor]:
    """The gradients of the weights; that by z goes to ``dz [..., Z]``."""
    w = Weights(*(weight.contiguous() for weight in weights))
    (E, Z), D = w.w_in.shape, w.w_out.shape[0]
    heads = [D] if w.w_scale is None else [D, D]
    columns = stacked(Z, E, E, E, E, *heads)

    def fill(scratch: Tensor, first: int) -> None:
        z_copy, h_1, h_2, dh_1, dh_2, *dheads = (tiles.columns_of(scratch, at) for at in columns)
        _, found = tiles.room(w.w_in, len(scratch), 0)
        tiles.first_layers(z, None, steps, [Layer(w.w_in, w.b_in, True, h_1)], z_copy, first, found)
        of_heads = tuple(Term(*term) for term in zip(dheads, (w.w_out, w.w_scale), strict=False))
        beyond = (
            Gradient(of_heads, dh_2, (h_2,)),
            Gradient((Term(dh_2, w.w_hidden),), dh_1, (h_1,)),
            Gradient((Term(dh_1, w.w_in),), tiles.features_of(dz)),
        )
        taken = Taken(dheads[0], dheads[1] if len(dheads) == 2 else None, beyond)
        head(w, Hidden(h_1, h_2), taken, found)

    at_z, at_1, at_2, at_d1, at_d2, *at_heads = columns
    layers = [(at_d1, at_z), (at_d2, at_1), *((at_head, at_2) for at_head in at_heads)]
    return weight_gradients(fill, weights, steps, count, layers=layers)


@rowwise_kernel
def emitter_fwd_kernel(  # type: ignore[no-untyped-def]
    w,
    hidden,
    heads,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows of each head [N, D]."""
    index, place, valid = tiles.rows_of_tile(found, count, BLOCK_M)
    hidden_layers(w, hidden, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    for i in tl.static_range(len(heads)):
        to, D = heads[i].to, heads[i].to.width
        for n in range(0, heads[i].to.width, BLOCK_N):
            columns = n + tl.arange(0, BLOCK_N)
            w_head, b_head = heads[i].w, heads[i].b
            out = tiles.layer_of(hidden.h_2, index, valid, w_head, b_head, columns, D, BLOCK_K, PRECISION)
            tiles.write(to, place, valid, columns, out)


@rowwise_kernel
def emitter_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    hidden,
    heads,
    steps,
    beyond,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows, from the gradients by each head [1, N, 1, D]: all others, into scratch."""
    index, place, valid = tiles.rows_of_tile(found, count, BLOCK_M)
    spots = tiles.spots_of(found, count, index, valid)
    hidden_layers(w, hidden, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    for i in tl.static_range(len(heads)):
        to = heads[i].to
        for n in range(0, heads[i].to.width, BLOCK_N):
            columns = n + tl.arange(0, BLOCK_N)
            given = load_row(tiles.row_at(heads[i].rows, spots), columns, to.width, valid)
            tiles.write(to, index, valid, columns, given)
    tiles.gradients_of_rows(beyond, index, place, valid, BLOCK_N, BLOCK_K, PRECISION)


class Copied(NamedTuple):
    """The gradient by a head, and the columns of scratch that take it."""

    rows: Rows
    to: Columns | None


def emitter(z: Tensor, weights: list[Tensor]) -> Tensor:
    """``logits [N, D]``."""
    return _outputs(z, weights)[0]


def emitter_backward(dlogits: Tensor, z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``dz [N, Z]`` and the gradients of the weights."""
    return _gradients([dlogits], z, weights)


def gaussian_emitter(z: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, pre_scale``, each ``[N, D]``."""
    loc, pre_scale = _outputs(z, weights)
    return loc, pre_scale


def gaussian_emitter_backward(
    dloc: Tensor, dpre_scale: Tensor, z: Tensor, weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``dz [N, Z]`` and the gradients of the weights."""
    return _gradients([dloc, dpre_scale], z, weights)


def _outputs(z: Tensor, weights: list[Tensor]) -> list[Tensor]:
    N, rows = len(z), z[None, :, None]
    out = [z.new_empty(N, head.shape[0]) for head in weights[4::2]]

    def head(w: Weights, hidden: Hidden, found: Tensor) -> None:
        given = zip(w[4::2], w[5::2], out, strict=False)
        heads = tuple(Layer(weight, b, False, tiles.features_of(to)) for weight, b, to in given)
        tiles.launch_tiles(emitter_fwd_kernel, found, (), w, hidden, heads)

    forward(head, weights, N, rows_of(rows), steps_of(rows, None))
    return out


def _gradients(dout: list[Tensor], z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    N, rows = len(z), z[None, :, None]
    dz, steps = z.new_empty(z.shape), steps_of(rows, None)

    def head(w: Weights, hidden: Hidden, taken: Taken, found: Tensor) -> None:
        given = zip(dout, taken[:2], strict=False)
        heads = tuple(Copied(rows_of(gradient[None, :, None]), to) for gradient, to in given)
        tiles.launch_tiles(emitter_bwd_kernel, found, (), w, hidden, heads, steps, taken.beyond)

    return dz, gradients(head, weights, N, rows_of(rows), steps, dz)
