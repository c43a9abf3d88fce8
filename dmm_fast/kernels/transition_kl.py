"""The analytic KL from given Gaussian steps to the prior's: gated transition and divergence."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.densities import normal_kl, normal_kl_slopes
from dmm_fast.kernels.rows import (
    load_row,
    rows_of,
    rowwise_kernel,
    split_chain,
    steps_of,
    sum_steps,
    terms_of,
)
from dmm_fast.kernels.tiles import (
    features_of,
    gradient_at,
    launch_tiles,
    row_at,
    rows_of_tile,
    spots_of,
    write,
)
from dmm_fast.kernels.transition import (
    Mixed,
    Taken,
    transition_backward,
    transition_forward,
    transition_head,
    transition_head_backward,
    transition_mean_backward,
    transition_mix,
)
from dmm_fast.reference import TransitionWeights

__all__ = ["transition_kl", "transition_kl_backward"]


@rowwise_kernel
def transition_kl_fwd_kernel(  # type: ignore[no-untyped-def]
    w,
    mixed,
    loc,
    pre_scale,
    steps,
    terms,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows: terms [P, B, T] is the divergence of each step."""
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    spots = spots_of(found, count, index, valid)
    loc_row, pre_scale_row = row_at(loc, spots), row_at(pre_scale, spots)
    transition_mix(w, mixed, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for n in range(0, mixed.loc.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        loc_p, pre_scale_p = transition_head(mixed, w, index, valid, columns, BLOCK_K, PRECISION)
        loc_q = load_row(loc_row, columns, mixed.loc.width, valid)
        pre_scale_q = load_row(pre_scale_row, columns, mixed.loc.width, valid)
        term = normal_kl(loc_q, pre_scale_q, loc_p, pre_scale_p)
        acc += tl.where((columns < mixed.loc.width)[None, :], term, 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def transition_kl_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    mixed,
    taken,
    dout,
    loc,
    pre_scale,
    steps,
    dloc,
    dpre_scale,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows, from dout [P, B]: gradients within the network, and by the given Gaussian [P, B, T, Z]."""
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    spots = spots_of(found, count, index, valid)
    transition_mix(w, mixed, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    for n in range(0, mixed.loc.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        loc_p, pre_scale_p = transition_head(mixed, w, index, valid, columns, BLOCK_K, PRECISION)
        loc_q = load_row(row_at(loc, spots), columns, dloc.width, valid)
        pre_scale_q = load_row(row_at(pre_scale, spots), columns, dloc.width, valid)
        by_loc, by_pre_scale, by_pre_scale_p = normal_kl_slopes(loc_q, pre_scale_q, loc_p, pre_scale_p)
        d = gradient_at(dout, spots, steps, valid)
        transition_head_backward(mixed, taken, index, valid, columns, -d * by_loc, d * by_pre_scale_p)
        write(dloc, place, valid, columns, d * by_loc)
        write(dpre_scale, place, valid, columns, d * by_pre_scale)
    transition_mean_backward(w, mixed, taken, index, valid, BLOCK_N, BLOCK_K, PRECISION)


def transition_kl(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> Tensor:
    """``[P, B]``: the sum over valid steps of KL(N(loc, softplus(pre_scale)) || p(z_t | z_{t-1}))."""
    terms, steps = terms_of(z), steps_of(z, lengths)
    loc_rows, pre_scale_rows = rows_of(loc), rows_of(pre_scale)

    def head(w: TransitionWeights, mixed: Mixed, found: Tensor) -> None:
        given = (w, mixed, loc_rows, pre_scale_rows, steps, terms)
        launch_tiles(transition_kl_fwd_kernel, found, (), *given)

    transition_forward(head, weights, terms.numel(), rows_of(z), rows_of(z_0), steps)
    return sum_steps(terms, z, lengths)


def transition_kl_backward(
    dout: Tensor,
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """``dz, dloc, dpre_scale [P, B, T, Z]``, ``dz_0 [P, B, Z]`` and the gradients of the weights."""
    P, B, T, _ = z.shape
    dloc, dpre_scale = z.new_zeros(z.shape), z.new_zeros(z.shape)
    dbefore = z.new_empty(z.shape, dtype=torch.float32)
    read = (dout.contiguous(), rows_of(loc), rows_of(pre_scale), steps_of(z, lengths))
    written = (features_of(dloc), features_of(dpre_scale))

    def head(w: TransitionWeights, mixed: Mixed, taken: Taken, found: Tensor) -> None:
        given = (w, mixed, taken, *read, *written)
        launch_tiles(transition_kl_bwd_kernel, found, (), *given, least_warps=8)

    rows = (rows_of(z), rows_of(z_0), steps_of(z, lengths))
    dweights = transition_backward(head, weights, P * B * T, *rows, dbefore)
    # A step's divergence does not depend on z_t itself.
    dz, dz_0 = split_chain(None, dbefore, z, lengths)
    return dz, dloc, dpre_scale, dz_0, dweights
