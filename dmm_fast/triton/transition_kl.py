"""The analytic KL from given Gaussian steps to those of the prior: gated transition and divergence."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import rows, sums, tiles, transition
from dmm_fast.triton.densities import normal_kl, normal_kl_slopes


@rows.rowwise_kernel
def transition_kl_fwd_kernel(  # type: ignore[no-untyped-def]
    w, mixed, loc, pre_scale, terms, found, count, blocks
):
    """Whole rows: terms [P, B, T] is the divergence of each step."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    loc_row, pre_scale_row = tiles.row_at(loc, spots), tiles.row_at(pre_scale, spots)
    transition.mix(w, mixed, index, valid, blocks)
    acc = tl.zeros((blocks.M, blocks.N), tl.float32)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc_p, pre_scale_p = transition.head(mixed, w, index, valid, columns, blocks)
        loc_q = rows.load_row(loc_row, columns, mixed.loc.width, valid)
        pre_scale_q = rows.load_row(pre_scale_row, columns, mixed.loc.width, valid)
        term = normal_kl(loc_q, pre_scale_q, loc_p, pre_scale_p)
        acc += tl.where((columns < mixed.loc.width)[None, :], term, 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def transition_kl_bwd_kernel(  # type: ignore[no-untyped-def]
    w, mixed, taken, dout, loc, pre_scale, dloc, dpre_scale, terms, found, count, blocks
):
    """Whole rows, from dout [P, B]: gradients within the network, and of the given Gaussian [P, B, T, Z].

    Also writes the divergence of each step to terms [P, B, T] unless it is None.
    """
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    transition.mix(w, mixed, index, valid, blocks)
    d = tiles.gradient_at(dout, spots, valid)
    total = tl.zeros((blocks.M,), tl.float32)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc_p, pre_scale_p = transition.head(mixed, w, index, valid, columns, blocks)
        loc_q = rows.load_row(tiles.row_at(loc, spots), columns, dloc.width, valid)
        pre_scale_q = rows.load_row(tiles.row_at(pre_scale, spots), columns, dloc.width, valid)
        by_loc, by_pre_scale, by_pre_scale_p = normal_kl_slopes(loc_q, pre_scale_q, loc_p, pre_scale_p)
        transition.head_backward(mixed, taken, index, valid, columns, -d * by_loc, d * by_pre_scale_p)
        tiles.write(dloc, place, valid, columns, d * by_loc)
        tiles.write(dpre_scale, place, valid, columns, d * by_pre_scale)
        if terms is not None:
            term = normal_kl(loc_q, pre_scale_q, loc_p, pre_scale_p)
            total += tl.sum(tl.where((columns < dloc.width)[None, :], term, 0.0), 1)
    if terms is not None:
        tl.store(terms + place, total, mask=valid)
    transition.mean_backward(w, mixed, taken, index, valid, blocks)


def transition_kl(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> Tensor:
    """``[P, B]``: the sum over valid steps of KL(N(loc, softplus(pre_scale)) || p(z_t | z_{t-1}))."""
    terms, steps = sums.terms_of(z), rows.steps_of(z, lengths)
    of_head = (rows.rows_of(loc), rows.rows_of(pre_scale), terms)
    given = (rows.rows_of(z), rows.rows_of(z_0), steps, *of_head)
    transition.forward(transition_kl_fwd_kernel, weights, terms.numel(), *given)
    return sums.sum_steps(terms, z, lengths)


def transition_kl_backward(
    dout: Tensor,
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
    with_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], Tensor]:
    """``dz, dloc, dpre_scale [P, B, T, Z]``, ``dz_0`` like ``z_0``, gradients of the weights.

    The last result is the value, ``[P, B]``, or empty if not requested.
    """
    P, B, T, _ = z.shape
    dloc, dpre_scale = z.new_empty(z.shape), z.new_empty(z.shape)
    dbefore = z.new_empty(z.shape, dtype=torch.float32)
    steps, terms = rows.steps_of(z, lengths), sums.terms_of(z) if with_out else None
    read = (sums.incoming(dout), rows.rows_of(loc), rows.rows_of(pre_scale))
    written = (tiles.features_of(dloc), tiles.features_of(dpre_scale))
    given = (rows.rows_of(z), rows.rows_of(z_0), steps, dbefore, *read, *written, terms)
    dweights = transition.backward(
        transition_kl_bwd_kernel, weights, P * B * T, *given, least_warps=8, cleared=written
    )
    # A step's divergence does not depend on z_t itself.
    dz, dz_0, out = sums.split_chain(None, dbefore, z_0, lengths, terms)
    return dz, dloc, dpre_scale, dz_0, dweights, out
