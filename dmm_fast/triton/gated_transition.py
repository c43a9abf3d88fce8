"""p(z_t | z_{t-1}) for single steps ``[N, Z]``."""

import triton.language as tl
from torch import Tensor

from dmm_fast.reference import TransitionWeights
from dmm_fast.triton import tiles, transition
from dmm_fast.triton.common import sigmoid, softplus
from dmm_fast.triton.rows import load_row, rows_of, rowwise_kernel, steps_of


@rowwise_kernel
def gated_transition_fwd_kernel(  # type: ignore[no-untyped-def]
    w,
    mixed,
    loc,
    scale,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows of loc and scale [N, Z]."""
    index, place, valid = tiles.rows_of_tile(found, count, BLOCK_M)
    transition.mix(w, mixed, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    for n in range(0, mixed.loc.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        mean, pre_scale = transition.head(mixed, w, index, valid, columns, BLOCK_K, PRECISION)
        tiles.write(loc, place, valid, columns, mean)
        tiles.write(scale, place, valid, columns, softplus(pre_scale))


@rowwise_kernel
def gated_transition_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    mixed,
    taken,
    loc,
    scale,
    steps,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows, from the gradients ``loc, scale`` [1, N, 1, Z] to those within the network."""
    index, _, valid = tiles.rows_of_tile(found, count, BLOCK_M)
    spots = tiles.spots_of(found, count, index, valid)
    transition.mix(w, mixed, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    for n in range(0, mixed.loc.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        _loc, pre_scale = transition.head(mixed, w, index, valid, columns, BLOCK_K, PRECISION)
        dloc = load_row(tiles.row_at(loc, spots), columns, mixed.loc.width, valid)
        dscale = load_row(tiles.row_at(scale, spots), columns, mixed.loc.width, valid)
        transition.head_backward(mixed, taken, index, valid, columns, dloc, dscale * sigmoid(pre_scale))
    transition.mean_backward(w, mixed, taken, index, valid, BLOCK_N, BLOCK_K, PRECISION)


def gated_transition(z_prev: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, scale``, each ``[N, Z]``."""
    N, Z = z_prev.shape
    z = z_prev[None, :, None]
    loc, scale = z_prev.new_empty(N, Z), z_prev.new_empty(N, Z)

    def head(w: TransitionWeights, mixed: transition.Mixed, found: Tensor) -> None:
        written = (tiles.features_of(loc), tiles.features_of(scale))
        tiles.launch_tiles(gated_transition_fwd_kernel, found, (), w, mixed, *written)

    transition.forward(head, weights, N, rows_of(z), None, steps_of(z, None))
    return loc, scale


def gated_transition_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``dz_prev [N, Z]`` and the gradients of the weights."""
    N, Z = z_prev.shape
    loc, scale, z = (tensor[None, :, None] for tensor in (dloc, dscale, z_prev))
    dz_prev = z_prev.new_empty(N, Z)
    steps = steps_of(z, None)
    given = (rows_of(loc), rows_of(scale), steps)

    def head(w: TransitionWeights, mixed: transition.Mixed, taken: transition.Taken, found: Tensor) -> None:
        tiles.launch_tiles(gated_transition_bwd_kernel, found, (), w, mixed, taken, *given)

    return dz_prev, transition.backward(head, weights, N, rows_of(z), None, steps, dz_prev)
