"""The head of a categorical emission, which treats steps as a whole; entries of a step may be missing.

Missing entries are summed over. The required log-sum-exps are computed in one pass over the columns; the
derivatives need a second one, which recomputes the logits.
"""

import triton
import triton.language as tl

from dmm_fast.triton import emitter, rows, tiles
from dmm_fast.triton.common import exp

NONE = tl.constexpr(float("-inf"))


@triton.jit
def added(top, total, logit, inside):  # type: ignore[no-untyped-def]
    """Update the largest logit of each row and the sum of exp(logit - largest) with a block of logits."""
    logit = tl.where(inside, logit, NONE)
    higher = tl.maximum(top, tl.max(logit, 1))
    # Before the first logit the largest one is NONE, and all terms are zero.
    base = tl.where(higher == NONE, 0.0, higher)
    return higher, total * exp(top - base) + tl.sum(exp(logit - base[:, None]), 1)


@triton.jit
def totals(w, h_2, index, valid, x_row, mask, spots, D: tl.constexpr, blocks):  # type: ignore[no-untyped-def]
    """Quantities shared by the derivatives of a row, and its log-probability.

    They are the log-sum-exp of its logits, that of the missing ones (of all if none is missing), the missing
    mass of x, the factor of the probabilities in the derivatives, and the row's term.
    """
    top = tl.full((blocks.M,), NONE, tl.float32)
    total = tl.zeros((blocks.M,), tl.float32)
    top_missing, missing = top, total
    hits, score, count = total, total, total
    for n in range(0, D, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        inside = valid[:, None] & (columns < D)[None, :]
        value = rows.load(x_row, columns, keep)
        logit = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        top, total = added(top, total, logit, inside)
        top_missing, missing = added(top_missing, missing, logit, inside & ~keep)
        hits += tl.sum(value, 1)
        score += tl.sum(value * logit, 1)
        count += tl.sum(keep.to(tl.float32), 1)
    of_all = tl.where(valid, top + tl.log(tl.where(valid, total, 1.0)), 0.0)
    any_missing = top_missing > NONE
    of_missing = tl.where(any_missing, top_missing + tl.log(tl.where(any_missing, missing, 1.0)), of_all)
    # A step without observed entries has no term.
    misses = tl.where(count > 0.0, 1.0 - hits, 0.0)
    factor = tl.where(count > 0.0, tl.where(any_missing, 1.0, hits), 0.0)
    term = (score - hits * of_all) + misses * (of_missing - of_all)
    return of_all, of_missing, misses, factor, term


@rows.rowwise_kernel
def categorical_emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, x, mask, terms, found, count, blocks, D: tl.constexpr
):
    """Whole rows: terms [P, B, T] is the log-density of the observed entries of each step."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    x_row = tiles.row_at(x, spots)
    _, _, _, _, term = totals(w, hidden.h_2, index, valid, x_row, mask, spots, D, blocks)
    tl.store(terms + place, term, mask=valid)


@rows.rowwise_kernel
def categorical_emission_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, taken, dout, x, mask, dx, terms, found, count, blocks
):
    """Whole rows, from dout [P, B]: gradients in scratch, by z, and dx [P, B, T, D] unless it is None.

    Also writes the log-density of each step to terms [P, B, T] unless it is None.
    """
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    x_row, d = tiles.row_at(x, spots), tiles.gradient_at(dout, spots, valid)
    h_2, D = hidden.h_2, taken.dout.width
    of_all, of_missing, misses, factor, term = totals(
        w, hidden.h_2, index, valid, x_row, mask, spots, taken.dout.width, blocks
    )
    if terms is not None:
        tl.store(terms + place, term, mask=valid)
    for n in range(0, taken.dout.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        value = rows.load(x_row, columns, keep)
        logit = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        from_missing = logit - of_missing[:, None]
        share = tl.where(keep, value, misses[:, None] * exp(from_missing))
        by_out = d * (share - factor[:, None] * exp(logit - of_all[:, None]))
        tiles.write(taken.dout, index, valid, columns, by_out)
        if dx is not None:
            tiles.write(dx, place, valid, columns, tl.where(keep, d * from_missing, 0.0))
    tiles.gradients_of_rows(taken.beyond, index, place, valid, blocks)
