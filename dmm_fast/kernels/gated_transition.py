"""p(z_t | z_{t-1}) for single steps ``[N, Z]``."""

import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import sigmoid, softplus
from dmm_fast.kernels.rows import (
    at,
    block_of_places,
    decoded_steps,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
)
from dmm_fast.kernels.transition import (
    scratch_of,
    transition_again,
    transition_forward,
    transition_head,
    transition_head_again,
    transition_head_backward,
    transition_rows,
    transition_rows_backward,
    weights_backward,
)

__all__ = ["gated_transition", "gated_transition_backward"]


@rowwise_kernel
def gated_transition_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, steps, loc, scale, work, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows of z [1, N, 1, Z]: loc and scale [N, Z]; work is [N, 2 Z] of its own."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = work + index * 2 * size.Z
    transition_rows(at(z, steps, row, step), valid, w, own, size, blocks)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        mean, pre_scale = transition_head(own, valid, w, columns, size, blocks)
        store_row(loc + index * size.Z, columns, size.Z, valid, mean)
        store_row(scale + index * size.Z, columns, size.Z, valid, softplus(pre_scale))


@rowwise_kernel
def gated_transition_bwd_kernel(  # type: ignore[no-untyped-def]
    w, loc, scale, z, steps, dz, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of rows, from the gradients ``loc, scale`` [1, N, 1, Z]: dz [N, Z] and its rows of scratch."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    transition_again(at(z, steps, row, step), valid, w, own, size, blocks)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        _, pre_scale = transition_head_again(own, valid, w, columns, size, blocks)
        dloc = load_row(at(loc, steps, row, step), columns, size.Z, valid)
        dscale = load_row(at(scale, steps, row, step), columns, size.Z, valid)
        transition_head_backward(own, valid, columns, dloc, dscale * sigmoid(pre_scale), size)
    transition_rows_backward(own, valid, w, dz + index * size.Z, size, blocks)


def gated_transition(z_prev: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``loc, scale``, each ``[N, Z]``."""
    N, Z = z_prev.shape
    z = z_prev[None, :, None]
    loc, scale = z_prev.new_empty(N, Z), z_prev.new_empty(N, Z)
    given = (rows_of(z), steps_of(z, None), loc, scale)
    transition_forward(gated_transition_fwd_kernel, weights, N, *given)
    return loc, scale


def gated_transition_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``dz_prev [N, Z]`` and the gradients of the weights."""
    N, Z = z_prev.shape
    loc, scale, z = (tensor[None, :, None] for tensor in (dloc, dscale, z_prev))
    dz_prev = z_prev.new_empty(N, Z)
    given = (rows_of(loc), rows_of(scale), rows_of(z), steps_of(z, None), dz_prev)
    return dz_prev, weights_backward(gated_transition_bwd_kernel, weights, N, *given)
