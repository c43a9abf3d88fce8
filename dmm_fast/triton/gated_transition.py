"""p(z_t | z_{t-1}, inputs_t) for single steps ``[N, I]``."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tiles, transition
from dmm_fast.triton.common import sigmoid, softplus
from dmm_fast.triton.rows import load_row, rows_of, rowwise_kernel, steps_of


@rowwise_kernel
def gated_transition_fwd_kernel(w, mixed, loc, scale, found, count, blocks):  # type: ignore[no-untyped-def]
    """Whole rows of loc and scale [N, Z]."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    transition.mix(w, mixed, index, valid, blocks)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        mean, pre_scale = transition.head(mixed, w, index, valid, columns, blocks)
        tiles.write(loc, place, valid, columns, mean)
        tiles.write(scale, place, valid, columns, softplus(pre_scale))


@rowwise_kernel
def gated_transition_bwd_kernel(  # type: ignore[no-untyped-def]
    w, mixed, taken, loc, scale, steps, found, count, blocks
):
    """Whole rows: the gradients within the network from the gradients ``loc, scale`` [1, N, 1, Z]."""
    index, _, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    transition.mix(w, mixed, index, valid, blocks)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        _loc, pre_scale = transition.head(mixed, w, index, valid, columns, blocks)
        dloc = load_row(tiles.row_at(loc, spots), columns, mixed.loc.width, valid)
        dscale = load_row(tiles.row_at(scale, spots), columns, mixed.loc.width, valid)
        transition.head_backward(mixed, taken, index, valid, columns, dloc, dscale * sigmoid(pre_scale))
    transition.mean_backward(w, mixed, taken, index, valid, blocks)


def gated_transition(z_prev: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, scale``, each ``[N, Z]``."""
    N, Z = len(z_prev), len(weights[-1])  # the bias of loc
    z = z_prev[None, :, None]
    loc, scale = z_prev.new_empty(N, Z), z_prev.new_empty(N, Z)
    given = (rows_of(z), None, steps_of(z, None), tiles.features_of(loc), tiles.features_of(scale))
    transition.forward(gated_transition_fwd_kernel, weights, N, *given)
    return loc, scale


def gated_transition_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``dz_prev [N, I]`` and the gradients of the weights."""
    loc, scale, z = (tensor[None, :, None] for tensor in (dloc, dscale, z_prev))
    dz_prev = z_prev.new_empty(z_prev.shape)
    steps = steps_of(z, None)
    given = (rows_of(z), None, steps, dz_prev, rows_of(loc), rows_of(scale), steps)
    return dz_prev, transition.backward(gated_transition_bwd_kernel, weights, len(z_prev), *given)
