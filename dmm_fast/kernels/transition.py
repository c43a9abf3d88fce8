"""The gated transition, forward and backward: what its three ops share.

    gate = sigmoid(W_go relu(W_gi z + b) + b)    mean = W_mo relu(W_mi z + b) + b    straight = W_l z + b
    loc = (1 - gate) straight + gate mean        pre_scale = W_s relu(mean) + b      z being z_{t-1}

Three launches: all layers of z; gate, mean and loc; and pre_scale, of which each op makes something else.
Backward these once more, and a launch for each layer then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import sigmoid
from dmm_fast.kernels.layers import in_parts, relu, stacked, weight_gradients
from dmm_fast.kernels.rows import Rows, Steps, rowwise_kernel
from dmm_fast.kernels.tiles import (
    Columns,
    Layer,
    Term,
    backward,
    columns_of,
    columns_of_tile,
    features_of,
    forward,
    gather,
    launch_tiles,
    layer_of,
    read,
    room,
    rows_of_tile,
    write,
)
from dmm_fast.reference import TransitionWeights


class Mixed(NamedTuple):
    """What the first two launches make of the rows; for a backward pass also the slopes of loc.

    By what goes into the sigmoid the slope is ``gate_slope``, by mean ``gate``, by straight 1 - gate.
    """

    loc: Any
    open_mean: Any
    gate: Any
    gate_slope: Any


class Taken(NamedTuple):
    """The gradients that an op's head leaves: dgate is by what goes into the sigmoid, dmean by way of loc."""

    dgate: Columns
    dmean: Columns
    dstraight: Columns
    dpre_scale: Columns


@rowwise_kernel
def transition_mix_kernel(  # type: ignore[no-untyped-def]
    hidden_g,
    hidden_m,
    straight,
    w,
    mixed,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """From the hidden layers and ``straight`` to what :class:`Mixed` has."""
    index, _, valid = rows_of_tile(found, count, BLOCK_M)
    columns = columns_of_tile(BLOCK_N)
    Z = mixed.loc.width
    gate = sigmoid(
        layer_of(hidden_g, index, valid, w.w_gate_out, w.b_gate_out, columns, Z, BLOCK_K, PRECISION)
    )
    mean = layer_of(hidden_m, index, valid, w.w_mean_out, w.b_mean_out, columns, Z, BLOCK_K, PRECISION)
    along = read(straight, index, valid, columns)
    write(mixed.loc, index, valid, columns, (1.0 - gate) * along + gate * mean)
    write(mixed.open_mean, index, valid, columns, relu(mean))
    if mixed.gate is not None:
        write(mixed.gate, index, valid, columns, gate)
        write(mixed.gate_slope, index, valid, columns, (mean - along) * gate * (1.0 - gate))


@triton.jit
def transition_head(mixed, w, index, valid, columns, BLOCK_K, PRECISION):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale."""
    pre_scale = layer_of(
        mixed.open_mean, index, valid, w.w_scale, w.b_scale, columns, mixed.loc.width, BLOCK_K, PRECISION
    )
    return read(mixed.loc, index, valid, columns), pre_scale


@triton.jit
def transition_head_backward(mixed, taken, index, valid, columns, dloc, dpre_scale):  # type: ignore[no-untyped-def]
    """Take the gradients by the given columns of loc and pre_scale."""
    gate = read(mixed.gate, index, valid, columns)
    write(taken.dpre_scale, index, valid, columns, dpre_scale)
    write(taken.dgate, index, valid, columns, dloc * read(mixed.gate_slope, index, valid, columns))
    write(taken.dmean, index, valid, columns, dloc * gate)
    write(taken.dstraight, index, valid, columns, dloc * (1.0 - gate))


Head = Callable[[TransitionWeights, Mixed, Tensor], None]
"""Launches what an op does with the rows at some places."""

HeadBackward = Callable[[TransitionWeights, Mixed, Taken, Tensor], None]


def transition_forward(
    head: Head, weights: list[Tensor], count: int, z: Rows, z_0: Rows | None, steps: Steps
) -> None:
    """Run the network for z_{t-1}, or for ``z`` itself where there is no ``z_0``, and the op's head."""
    w = TransitionWeights(*(weight.contiguous() for weight in weights))
    (G, Z), R = w.w_gate_in.shape, w.w_mean_in.shape[0]
    for first, size in in_parts(count):
        work, found = room(w.w_loc, size, G + R + 4 * Z)
        own, *layers, loc, open_mean = (columns_of(work, at) for at in stacked(Z, G, R, Z, Z, Z))
        gather(z, z_0, steps, own, first, found)
        mixed = Mixed(loc, open_mean, None, None)
        mix(w, own, layers, mixed, found)
        head(w, mixed, found)


def mix(w: TransitionWeights, own: Columns, layers: list[Columns], mixed: Mixed, found: Tensor) -> None:
    """Launch the layers of z_{t-1}, both hidden ones and ``straight``, and what is made of them."""
    hidden_g, hidden_m, straight = layers
    of_z = [
        Layer(w.w_gate_in, w.b_gate_in, True, hidden_g),
        Layer(w.w_mean_in, w.b_mean_in, True, hidden_m),
        Layer(w.w_loc, w.b_loc, False, straight),
    ]
    forward(own, of_z, found)
    launch_tiles(transition_mix_kernel, found, (mixed.loc.width.value,), *layers, w, mixed)


def transition_backward(
    head: HeadBackward,
    weights: list[Tensor],
    count: int,
    z: Rows,
    z_0: Rows | None,
    steps: Steps,
    dbefore: Tensor,
) -> list[Tensor]:
    """The gradients of the weights; that by z_{t-1}, or by ``z`` itself, goes to ``dbefore [..., Z]``."""
    w = TransitionWeights(*(weight.contiguous() for weight in weights))
    (G, Z), R = w.w_gate_in.shape, w.w_mean_in.shape[0]
    columns = stacked(Z, G, R, Z, G, R, Z, Z, Z, Z)
    at_z, at_g, at_m, at_open, at_dg, at_dm, at_straight, at_gate, at_mean, at_scale = columns

    def fill(scratch: Tensor, first: int) -> None:
        own, hidden_g, hidden_m, open_mean, dhidden_g, dhidden_m, dstraight, dgate, dmean, dpre_scale = (
            columns_of(scratch, at) for at in columns
        )
        work, found = room(w.w_loc, len(scratch), 5 * Z)
        straight, loc, gate, gate_slope, by_loc = (columns_of(work, at) for at in stacked(Z, Z, Z, Z, Z))
        mixed = Mixed(loc, open_mean, gate, gate_slope)
        gather(z, z_0, steps, own, first, found)
        mix(w, own, [hidden_g, hidden_m, straight], mixed, found)
        head(w, mixed, Taken(dgate, by_loc, dstraight, dpre_scale), found)
        backward([Term(dpre_scale, w.w_scale)], dmean, found, opened=open_mean, direct=by_loc)
        backward([Term(dgate, w.w_gate_out)], dhidden_g, found, opened=hidden_g)
        backward([Term(dmean, w.w_mean_out)], dhidden_m, found, opened=hidden_m)
        of_z = [Term(dhidden_g, w.w_gate_in), Term(dhidden_m, w.w_mean_in), Term(dstraight, w.w_loc)]
        backward(of_z, features_of(dbefore), found, by_place=True)

    layers = [
        (at_dg, at_z),
        (at_gate, at_g),
        (at_dm, at_z),
        (at_mean, at_m),
        (at_scale, at_open),
        (at_straight, at_z),
    ]
    return weight_gradients(fill, weights, steps, count, layers=layers)
