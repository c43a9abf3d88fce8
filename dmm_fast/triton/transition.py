"""The gated transition, forward and backward: shared parts of its ops.

    gate = sigmoid(W_go relu(W_gi z + b) + b)    mean = W_mo relu(W_mi z + b) + b    linear = W_l z + b
    loc = (1 - gate) linear + gate mean          pre_scale = W_s relu(mean) + b

with z = z_{t-1}, followed by any further inputs of the transition.
There are two launches: one for all layers of z, and one for everything after them, which depends on the op.
Programs of the second have whole rows, since each pre_scale depends on all of mean. The backward pass repeats
both, and continues with the hidden layers and z.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import TransitionWeights
from dmm_fast.triton import tiles
from dmm_fast.triton.common import sigmoid
from dmm_fast.triton.layers import in_parts, linear_backward, relu, stacked, weight_gradients
from dmm_fast.triton.rows import Rows, Steps
from dmm_fast.triton.tiles import Columns, Gradient, Layer, Term


class Mixed(NamedTuple):
    """The layers of z and the values computed from them; in a backward pass also the derivatives of loc.

    The derivative with respect to the sigmoid's argument is ``gate_slope``, with respect to mean ``gate``,
    with respect to linear 1 - gate.
    """

    hidden_g: Columns
    hidden_m: Columns
    linear: Columns
    loc: Columns
    relu_mean: Columns
    gate: Any = None
    gate_slope: Any = None


class Taken(NamedTuple):
    """The gradients written by an op's head; dgate is that of the sigmoid's argument."""

    dgate: Columns
    dmean: Columns
    dlinear: Columns
    dpre_scale: Columns


@triton.jit
def mix(w, mixed, index, valid, blocks):  # type: ignore[no-untyped-def]
    """Whole rows: compute the other fields of :class:`Mixed` from the layers of z."""
    Z = mixed.loc.width
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        gate = tiles.layer_of(mixed.hidden_g, index, valid, w.w_gate_out, w.b_gate_out, columns, Z, blocks)
        gate = sigmoid(gate)
        mean = tiles.layer_of(mixed.hidden_m, index, valid, w.w_mean_out, w.b_mean_out, columns, Z, blocks)
        linear = tiles.read(mixed.linear, index, valid, columns)
        tiles.write(mixed.loc, index, valid, columns, (1.0 - gate) * linear + gate * mean)
        tiles.write(mixed.relu_mean, index, valid, columns, relu(mean))
        if mixed.gate is not None:
            tiles.write(mixed.gate, index, valid, columns, gate)
            tiles.write(mixed.gate_slope, index, valid, columns, (mean - linear) * gate * (1.0 - gate))
    tl.debug_barrier()


@triton.jit
def head(mixed, w, index, valid, columns, blocks):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale."""
    pre_scale = tiles.layer_of(
        mixed.relu_mean, index, valid, w.w_scale, w.b_scale, columns, mixed.loc.width, blocks
    )
    return tiles.read(mixed.loc, index, valid, columns), pre_scale


@triton.jit
def head_backward(mixed, taken, index, valid, columns, dloc, dpre_scale):  # type: ignore[no-untyped-def]
    """Write gradients from those of the given columns of loc and pre_scale; dmean only by way of loc."""
    gate = tiles.read(mixed.gate, index, valid, columns)
    tiles.write(taken.dpre_scale, index, valid, columns, dpre_scale)
    dgate = dloc * tiles.read(mixed.gate_slope, index, valid, columns)
    tiles.write(taken.dgate, index, valid, columns, dgate)
    tiles.write(taken.dmean, index, valid, columns, dloc * gate)
    tiles.write(taken.dlinear, index, valid, columns, dloc * (1.0 - gate))


@triton.jit
def mean_backward(w, mixed, taken, index, valid, blocks):  # type: ignore[no-untyped-def]
    """Whole rows: add the path by pre_scale to dmean."""
    tl.debug_barrier()
    Z = mixed.loc.width
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        dpre_scale = taken.dpre_scale.ptr + index * taken.dpre_scale.stride
        dmean_from_scale = linear_backward(dpre_scale, valid, Z, w.w_scale, columns, Z, blocks)
        relu_mean = tiles.read(mixed.relu_mean, index, valid, columns)
        dmean_from_scale = tl.where(relu_mean > 0.0, dmean_from_scale, 0.0)
        dmean = tiles.read(taken.dmean, index, valid, columns)
        tiles.write(taken.dmean, index, valid, columns, dmean + dmean_from_scale)


def forward(
    kernel: Any, weights: list[Tensor], count: int, z: Rows, z_0: Rows | None, steps: Steps, *given: Any
) -> None:
    """Run the network for z_{t-1}, or for ``z`` itself if ``z_0`` is None, and the op's head.

    The head is ``kernel(w, mixed, *given, ...)``, which calls :func:`mix` first.
    """
    w = TransitionWeights(*(weight.contiguous() for weight in weights))
    G, R, Z = len(w.w_gate_in), len(w.w_mean_in), len(w.w_loc)
    for first, size in in_parts(count):
        work, found = tiles.room(w.w_loc, size, G + R + 3 * Z)
        mixed = Mixed(*(tiles.columns_of(work, at) for at in stacked(G, R, Z, Z, Z)))
        tiles.first_layers(z, z_0, steps, layers_of_z(w, mixed), None, first, found)
        tiles.launch_tiles(kernel, found, (), w, mixed, *given)


def layers_of_z(w: TransitionWeights, mixed: Mixed) -> list[Layer]:
    """Both hidden layers, and ``linear``."""
    return [
        Layer(w.w_gate_in, w.b_gate_in, True, mixed.hidden_g),
        Layer(w.w_mean_in, w.b_mean_in, True, mixed.hidden_m),
        Layer(w.w_loc, w.b_loc, False, mixed.linear),
    ]


def backward(
    kernel: Any,
    weights: list[Tensor],
    count: int,
    z: Rows,
    z_0: Rows | None,
    steps: Steps,
    dbefore: Tensor,
    *given: Any,
    least_warps: int = 1,
    cleared: tuple[Columns, ...] = (),
) -> list[Tensor]:
    """The gradients of the weights; that of z_{t-1}, or of ``z`` itself, is written to ``dbefore [..., Z]``.

    The op's head is ``kernel(w, mixed, taken, *given, ...)``; past the ends of rows it writes nothing to the
    tensors ``cleared``, which are filled with zeros there.
    """
    w = TransitionWeights(*(weight.contiguous() for weight in weights))
    (G, width), R, Z = w.w_gate_in.shape, len(w.w_mean_in), len(w.w_loc)
    columns = stacked(width, G, R, Z, G, R, Z, Z, Z, Z)
    at_z, at_g, at_m, at_relu, at_dg, at_dm, at_linear, at_gate, at_mean, at_scale = columns

    def fill(scratch: Tensor, first: int) -> None:
        z_copy, hidden_g, hidden_m, relu_mean, dhidden_g, dhidden_m, dlinear, dgate, dmean, dpre_scale = (
            tiles.columns_of(scratch, at) for at in columns
        )
        work, found = tiles.room(w.w_loc, len(scratch), 4 * Z)
        linear, loc, gate, gate_slope = (tiles.columns_of(work, at) for at in stacked(Z, Z, Z, Z))
        mixed = Mixed(hidden_g, hidden_m, linear, loc, relu_mean, gate, gate_slope)
        tiles.first_layers(z, z_0, steps, layers_of_z(w, mixed), z_copy, first, found, cleared)
        taken = Taken(dgate, dmean, dlinear, dpre_scale)
        tiles.launch_tiles(kernel, found, (), w, mixed, taken, *given, least_warps=least_warps)
        of_hidden_g = Gradient((Term(dgate, w.w_gate_out),), dhidden_g, (hidden_g,))
        of_hidden_m = Gradient((Term(dmean, w.w_mean_out),), dhidden_m, (hidden_m,))
        tiles.backward([of_hidden_g, of_hidden_m], found)
        of_z = Term(dhidden_g, w.w_gate_in), Term(dhidden_m, w.w_mean_in), Term(dlinear, w.w_loc)
        tiles.backward([Gradient(of_z, tiles.features_of(dbefore))], found, by_place=True)

    layers = [
        (at_dg, at_z),
        (at_gate, at_g),
        (at_dm, at_z),
        (at_mean, at_m),
        (at_scale, at_relu),
        (at_linear, at_z),
    ]
    return weight_gradients(fill, weights, steps, count, layers=layers)
