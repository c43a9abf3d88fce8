"""log p(z_{1:T}) of the prior chain: gated transition and Gaussian log-density in one pass."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import rows, sums, tiles, transition
from dmm_fast.triton.densities import normal_log_density, normal_slopes


@rows.rowwise_kernel
def transition_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, mixed, z, terms, found, count, blocks
):
    """Whole rows: terms [P, B, T] is the log-density of each step."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    value = tiles.row_at(z, tiles.spots_of(found, count, index, valid))
    transition.mix(w, mixed, index, valid, blocks)
    acc = tl.zeros((blocks.M, blocks.N), tl.float32)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = transition.head(mixed, w, index, valid, columns, blocks)
        term = normal_log_density(rows.load_row(value, columns, mixed.loc.width, valid), loc, pre_scale)
        acc += tl.where((columns < mixed.loc.width)[None, :], term, 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def transition_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, mixed, taken, dout, z, dvalue, terms, found, count, blocks
):
    """Whole rows, from dout [P, B]: gradients within the network, and of z_t itself [P, B, T, Z].

    Also writes the log-density of each step to terms [P, B, T] unless it is None.
    """
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    transition.mix(w, mixed, index, valid, blocks)
    d = tiles.gradient_at(dout, spots, valid)
    total = tl.zeros((blocks.M,), tl.float32)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = transition.head(mixed, w, index, valid, columns, blocks)
        value = rows.load_row(tiles.row_at(z, spots), columns, dvalue.width, valid)
        by_loc, by_pre_scale = normal_slopes(value, loc, pre_scale)
        transition.head_backward(mixed, taken, index, valid, columns, d * by_loc, d * by_pre_scale)
        tiles.write(dvalue, place, valid, columns, -d * by_loc)
        if terms is not None:
            term = normal_log_density(value, loc, pre_scale)
            total += tl.sum(tl.where((columns < dvalue.width)[None, :], term, 0.0), 1)
    if terms is not None:
        tl.store(terms + place, total, mask=valid)
    transition.mean_backward(w, mixed, taken, index, valid, blocks)


def transition_log_prob(z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of log N(z_t; gated_transition(z_{t-1}))."""
    terms, z_rows, steps = sums.terms_of(z), rows.rows_of(z), rows.steps_of(z, lengths)
    given = (z_rows, rows.rows_of(z_0), steps, z_rows, terms)
    transition.forward(transition_log_prob_fwd_kernel, weights, terms.numel(), *given)
    return sums.sum_steps(terms, z, lengths)


def transition_log_prob_backward(
    dout: Tensor, z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor, with_out: bool
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """``dz [P, B, T, Z]``, ``dz_0`` like ``z_0``, gradients of the weights, and the value if requested."""
    P, B, T, _ = z.shape
    dvalue, dbefore = (z.new_empty(z.shape, dtype=torch.float32) for _ in range(2))
    z_rows, steps = rows.rows_of(z), rows.steps_of(z, lengths)
    terms = sums.terms_of(z) if with_out else None
    of_head = (sums.incoming(dout), z_rows, tiles.features_of(dvalue), terms)
    given = (z_rows, rows.rows_of(z_0), steps, dbefore, *of_head)
    dweights = transition.backward(transition_log_prob_bwd_kernel, weights, P * B * T, *given)
    dz, dz_0, out = sums.split_chain(dvalue, dbefore, z_0, lengths, terms)
    return dz, dz_0, dweights, out
