"""Bernoulli log-probabilities of given logits."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import rows, sums
from dmm_fast.triton.densities import bernoulli_log_density, bernoulli_slope


@rows.rowwise_kernel
def bernoulli_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    x, logits, steps, mask, terms, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: terms [P, B, T] is each step's sum over observed entries."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, _, valid = rows.every_place(steps, index)
    x_row, logits_row = rows.at(x, steps, row, step), rows.at(logits, steps, row, step)
    acc = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = rows.kept(mask, steps, row, step, columns, wide.D, valid)
        term = bernoulli_log_density(rows.load(x_row, columns, keep), rows.load(logits_row, columns, keep))
        acc += tl.where(keep, term, 0.0)
    tl.store(terms + index, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def bernoulli_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    dout, x, logits, steps, mask, dx, dlogits, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: from dout [P, B] both gradients [P, B, T, D], zero at dropped entries."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, inside, valid = rows.every_place(steps, index)
    x_row, logits_row = rows.at(x, steps, row, step), rows.at(logits, steps, row, step)
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = rows.kept(mask, steps, row, step, columns, wide.D, valid)
        value, logit = rows.load(x_row, columns, keep), rows.load(logits_row, columns, keep)
        slope = tl.where(keep, d * bernoulli_slope(value, logit), 0.0)
        # The logits of dropped entries are zero.
        rows.store_row(dx + index * wide.D, columns, wide.D, inside, d * logit)
        rows.store_row(dlogits + index * wide.D, columns, wide.D, inside, slope)


def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None) -> Tensor:
    """``[P, B]``: the sum over observed entries of log Bernoulli(x; sigmoid(logits))."""
    terms = sums.terms_of(logits)
    given = (rows.rows_of(x), rows.rows_of(logits), rows.steps_of(logits, lengths), rows.entries_of(mask))
    rows.launch_wide(bernoulli_log_prob_fwd_kernel, logits, *given, terms)
    return sums.sum_steps(terms, logits, lengths)


def bernoulli_log_prob_backward(
    dout: Tensor, x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``dx, dlogits``, each ``[P, B, T, D]``."""
    dx, dlogits = logits.new_empty(logits.shape), logits.new_empty(logits.shape)
    given = (rows.rows_of(x), rows.rows_of(logits), rows.steps_of(logits, lengths), rows.entries_of(mask))
    rows.launch_wide(bernoulli_log_prob_bwd_kernel, logits, dout.contiguous(), *given, dx, dlogits)
    return dx, dlogits
