"""The emitters p(x_t | z_t) for single steps ``[N, Z]``, and shared parts of their ops.

    h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b

For a Bernoulli, out is the logits; a Gaussian has a second head for pre_scale, and a NADE one of another
width for its initial state (:mod:`dmm_fast.triton.nade`). The first hidden layer is one launch. The rest is a
second launch of each op, whose programs process whole rows; its backward pass continues to z.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tiles
from dmm_fast.triton.layers import in_parts, relu, stacked, weight_gradients
from dmm_fast.triton.rows import Rows, Steps, load_row, rows_of, rowwise_kernel, steps_of
from dmm_fast.triton.tiles import Columns, Gradient, Layer, Term


class Weights(NamedTuple):
    """Weights of an emitter: ``w_out`` is the only or the first head, ``w_scale`` the second, if any."""

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
    """Gradients in scratch: those written by an op's heads, and those computed from them."""

    dout: Columns
    dpre_scale: Columns | None
    beyond: tuple[Gradient, ...]


def forward(
    kernel: Any, weights: list[Tensor], count: int, z: Rows, steps: Steps, *given: Any, **options: Any
) -> None:
    """Run the first hidden layer, then ``kernel(w, hidden, *given, ...)``: the second, and the op's head."""
    w = Weights(*(weight.contiguous() for weight in weights))
    E = w.w_in.shape[0]
    for first, size in in_parts(count):
        work, found = tiles.room(w.w_in, size, 2 * E)
        hidden = Hidden(*(tiles.columns_of(work, at) for at in stacked(E, E)))
        layers = [Layer(w.w_in, w.b_in, True, hidden.h_1)]
        tiles.first_layers(z, None, steps, layers, None, first, found)
        tiles.launch_tiles(kernel, found, (), w, hidden, *given, **options)


@triton.jit
def hidden_layers(w, hidden, index, valid, blocks):  # type: ignore[no-untyped-def]
    """Compute whole rows of the second hidden layer from the first."""
    E = hidden.h_2.width
    for n in range(0, hidden.h_2.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        out = tiles.layer_of(hidden.h_1, index, valid, w.w_hidden, w.b_hidden, columns, E, blocks)
        tiles.write(hidden.h_2, index, valid, columns, relu(out))
    tl.debug_barrier()


def gradients(
    kernel: Any,
    weights: list[Tensor],
    count: int,
    z: Rows,
    steps: Steps,
    dz: Tensor,
    *given: Any,
    cleared: tuple[Columns, ...] = (),
    **options: Any,
) -> list[Tensor]:
    """The gradients of the weights; that of z is written to ``dz [..., Z]``.

    The op's head is ``kernel(w, hidden, taken, *given, ..., **options)``; past the ends of rows it writes
    nothing to the tensors ``cleared``, which are filled with zeros there.
    """
    w = Weights(*(weight.contiguous() for weight in weights))
    (E, Z), D = w.w_in.shape, w.w_out.shape[0]
    heads = [D] if w.w_scale is None else [D, w.w_scale.shape[0]]
    columns = stacked(Z, E, E, E, E, *heads)

    def fill(scratch: Tensor, first: int) -> None:
        z_copy, h_1, h_2, dh_1, dh_2, *dheads = (tiles.columns_of(scratch, at) for at in columns)
        _, found = tiles.room(w.w_in, len(scratch), 0)
        layers = [Layer(w.w_in, w.b_in, True, h_1)]
        tiles.first_layers(z, None, steps, layers, z_copy, first, found, cleared)
        of_heads = tuple(Term(*term) for term in zip(dheads, (w.w_out, w.w_scale), strict=False))
        beyond = (
            Gradient(of_heads, dh_2, (h_2,)),
            Gradient((Term(dh_2, w.w_hidden),), dh_1, (h_1,)),
            Gradient((Term(dh_1, w.w_in),), tiles.features_of(dz)),
        )
        taken = Taken(dheads[0], dheads[1] if len(dheads) == 2 else None, beyond)
        tiles.launch_tiles(kernel, found, (), w, Hidden(h_1, h_2), taken, *given, **options)

    at_z, at_1, at_2, at_d1, at_d2, *at_heads = columns
    pairs = [(at_d1, at_z), (at_d2, at_1), *((at_head, at_2) for at_head in at_heads)]
    return weight_gradients(fill, weights, steps, count, layers=pairs)


@rowwise_kernel
def emitter_fwd_kernel(w, hidden, heads, found, count, blocks):  # type: ignore[no-untyped-def]
    """Whole rows of each head [N, D]."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    hidden_layers(w, hidden, index, valid, blocks)
    for i in tl.static_range(len(heads)):
        w_head, b_head = (w.w_out, w.b_out) if i == 0 else (w.w_scale, w.b_scale)
        D = heads[i].width
        for n in range(0, heads[i].width, blocks.N):
            columns = n + tl.arange(0, blocks.N)
            out = tiles.layer_of(hidden.h_2, index, valid, w_head, b_head, columns, D, blocks)
            tiles.write(heads[i], place, valid, columns, out)


@rowwise_kernel
def emitter_bwd_kernel(w, hidden, taken, heads, found, count, blocks):  # type: ignore[no-untyped-def]
    """Whole rows: compute all gradients in scratch from those of each head [P, B, T, width]."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    hidden_layers(w, hidden, index, valid, blocks)
    for i in tl.static_range(len(heads)):
        to = taken.dout if i == 0 else taken.dpre_scale
        for n in range(0, to.width, blocks.N):
            columns = n + tl.arange(0, blocks.N)
            given = load_row(tiles.row_at(heads[i], spots), columns, to.width, valid)
            tiles.write(to, index, valid, columns, given)
    tiles.gradients_of_rows(taken.beyond, index, place, valid, blocks)


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
    heads = tuple(map(tiles.features_of, out))
    forward(emitter_fwd_kernel, weights, N, rows_of(rows), steps_of(rows, None), heads)
    return out


def _gradients(dout: list[Tensor], z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    N, rows = len(z), z[None, :, None]
    dz, steps = z.new_empty(z.shape), steps_of(rows, None)
    heads = tuple(rows_of(gradient[None, :, None]) for gradient in dout)
    return dz, gradients(emitter_bwd_kernel, weights, N, rows_of(rows), steps, dz, heads)
