"""The gated transition of a block of rows, forward and backward: what its three ops share.

    gate = sigmoid(W_go relu(W_gi z + b) + b)    mean = W_mo relu(W_mi z + b) + b    straight = W_l z + b
    loc = (1 - gate) straight + gate mean        pre_scale = W_s relu(mean) + b      z being z_{t-1}

Forward, the hidden layers of G and R units never leave the program. What the last layer reads, relu(mean),
is complete only after a pass over them: Z numbers a row go through memory, and loc with them.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import sigmoid
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
from dmm_fast.kernels.rows import constants, load_row, store_row
from dmm_fast.reference import TransitionWeights


class Sizes(NamedTuple):
    """Latents, and hidden units of the gate and of the mean."""

    Z: Any
    G: Any
    R: Any


def network(weights: list[Tensor], blocks_for: BlocksFor) -> Network:
    """The network with these weights."""
    w = TransitionWeights(*(weight.contiguous() for weight in weights))
    (G, Z), R = w.w_gate_in.shape, w.w_mean_in.shape[0]
    return Network(w, constants(Sizes(Z, G, R)), blocks_for(max(G, R), Z))


def transition_forward(kernel: Any, weights: list[Tensor], count: int, *given: Any) -> None:
    """Run ``kernel(w, *given, work, first, size, blocks)``; ``work [count, 2 Z]`` is for transition_rows."""
    work = weights[0].new_empty(count, 2 * weights[0].shape[1], dtype=torch.float32)
    launch_network(kernel, network(weights, forward_blocks), count, *given, work)


@triton.jit
def transition_rows(z, valid, w, own, size, blocks):  # type: ignore[no-untyped-def]
    """Write loc and, after it, relu(mean) of the rows ``z`` to ``own``, 2 Z numbers for each row."""
    Z, G, R = size.Z, size.G, size.R
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        gate = sigmoid(
            two_layers(
                z, valid, Z, w.w_gate_in, w.b_gate_in, G, w.w_gate_out, w.b_gate_out, columns, Z, blocks
            )
        )
        mean = two_layers(
            z, valid, Z, w.w_mean_in, w.b_mean_in, R, w.w_mean_out, w.b_mean_out, columns, Z, blocks
        )
        straight = linear(z, valid, Z, w.w_loc, w.b_loc, columns, Z, blocks)
        store_row(own, columns, Z, valid, (1.0 - gate) * straight + gate * mean)
        store_row(own + Z, columns, Z, valid, relu(mean))
    tl.debug_barrier()


@triton.jit
def transition_head(own, valid, w, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale after :func:`transition_rows`."""
    loc = load_row(own, columns, size.Z, valid)
    return loc, linear(own + size.Z, valid, size.Z, w.w_scale, w.b_scale, columns, size.Z, blocks)


# --- backward -------------------------------------------------------------------------------------------
#
# A row of scratch. Slopes of loc stand where later the gradients by gate, mean and straight do; loc where
# that by pre_scale does.
#
#   z_{t-1} Z, hidden_g G, hidden_m R, relu(mean) Z, dhidden_g G, dhidden_m R, dstraight Z, dgate Z, dmean Z,
#   dpre_scale Z


class Scratch(NamedTuple):
    """Where the columns of a row of scratch begin: pointers for a block of rows."""

    z: Any
    hidden_g: Any
    hidden_m: Any
    open_mean: Any
    dhidden_g: Any
    dhidden_m: Any
    dstraight: Any
    dgate: Any
    dmean: Any
    dpre_scale: Any


def weights_backward(kernel: Any, weights: list[Tensor], count: int, *given: Any) -> list[Tensor]:
    """The gradients of the weights, from what ``kernel(w, *given, scratch, ...)`` leaves in scratch."""
    (G, Z), R = weights[0].shape, weights[4].shape[0]
    at = Scratch(*stacked(Z, G, R, Z, G, R, Z, Z, Z, Z))
    layers = [
        (at.dhidden_g, at.z),
        (at.dgate, at.hidden_g),
        (at.dhidden_m, at.z),
        (at.dmean, at.hidden_m),
        (at.dpre_scale, at.open_mean),
        (at.dstraight, at.z),
    ]
    return weight_gradients(kernel, network(weights, backward_blocks), count, *given, layers=layers)


@triton.jit
def scratch_of(scratch, place, size):  # type: ignore[no-untyped-def]
    """The columns of the rows ``place`` of scratch."""
    Z, G, R = size.Z, size.G, size.R
    own = scratch + place * (6 * Z + 2 * G + 2 * R)
    late = own + 2 * Z + 2 * G + 2 * R
    return Scratch(
        own,
        own + Z,
        own + Z + G,
        own + Z + G + R,
        own + 2 * Z + G + R,
        own + 2 * Z + 2 * G + R,
        late,
        late + Z,
        late + 2 * Z,
        late + 3 * Z,
    )


@triton.jit
def transition_again(z, valid, w, own, size, blocks):  # type: ignore[no-untyped-def]
    """Compute rows ``z`` once more and keep every layer, loc and the slopes of loc in scratch."""
    Z, G, R = size.Z, size.G, size.R
    copy_rows(z, valid, own.z, Z, blocks)
    hidden_rows(z, valid, Z, w.w_gate_in, w.b_gate_in, own.hidden_g, G, blocks)
    hidden_rows(z, valid, Z, w.w_mean_in, w.b_mean_in, own.hidden_m, R, blocks)
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        gate = sigmoid(linear(own.hidden_g, valid, G, w.w_gate_out, w.b_gate_out, columns, Z, blocks))
        mean = linear(own.hidden_m, valid, R, w.w_mean_out, w.b_mean_out, columns, Z, blocks)
        straight = linear(z, valid, Z, w.w_loc, w.b_loc, columns, Z, blocks)
        store_row(own.open_mean, columns, Z, valid, relu(mean))
        store_row(own.dgate, columns, Z, valid, (mean - straight) * gate * (1.0 - gate))
        store_row(own.dmean, columns, Z, valid, gate)
        store_row(own.dstraight, columns, Z, valid, 1.0 - gate)
        store_row(own.dpre_scale, columns, Z, valid, (1.0 - gate) * straight + gate * mean)
    tl.debug_barrier()


@triton.jit
def transition_head_again(own, valid, w, columns, size, blocks):  # type: ignore[no-untyped-def]
    """The given columns of loc and pre_scale after :func:`transition_again`."""
    loc = load_row(own.dpre_scale, columns, size.Z, valid)
    return loc, linear(own.open_mean, valid, size.Z, w.w_scale, w.b_scale, columns, size.Z, blocks)


@triton.jit
def transition_head_backward(own, valid, columns, dloc, dpre_scale, size):  # type: ignore[no-untyped-def]
    """Take the gradients by the given columns of loc and pre_scale into scratch."""
    store_row(own.dpre_scale, columns, size.Z, valid, dpre_scale)
    for slope in tl.static_range(3):
        to = own.dstraight + slope * size.Z
        store_row(to, columns, size.Z, valid, dloc * load_row(to, columns, size.Z, valid))


@triton.jit
def transition_rows_backward(own, valid, w, dz, size, blocks):  # type: ignore[no-untyped-def]
    """From what all heads took in to every gradient in scratch, and to ``dz``, rows of that by z_{t-1}."""
    Z, G, R = size.Z, size.G, size.R
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        through = linear_backward(own.dpre_scale, valid, Z, w.w_scale, columns, Z, blocks)
        through = tl.where(load_row(own.open_mean, columns, Z, valid) > 0.0, through, 0.0)
        store_row(own.dmean, columns, Z, valid, load_row(own.dmean, columns, Z, valid) + through)
    tl.debug_barrier()
    hidden_rows_backward(own.dgate, valid, Z, w.w_gate_out, own.hidden_g, own.dhidden_g, G, blocks)
    hidden_rows_backward(own.dmean, valid, Z, w.w_mean_out, own.hidden_m, own.dhidden_m, R, blocks)
    tl.debug_barrier()
    for n in range(0, Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        gradient = linear_backward(own.dhidden_g, valid, G, w.w_gate_in, columns, Z, blocks)
        gradient += linear_backward(own.dhidden_m, valid, R, w.w_mean_in, columns, Z, blocks)
        gradient += linear_backward(own.dstraight, valid, Z, w.w_loc, columns, Z, blocks)
        store_row(dz, columns, Z, valid, gradient)
