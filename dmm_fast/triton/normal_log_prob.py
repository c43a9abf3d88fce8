"""Gaussian log-densities, of values with given parameters and of draws from their noise."""

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import rows, sums
from dmm_fast.triton.densities import HALF_LOG_2PI, drawn_log_density, log_softplus_slope


@triton.jit
def standardized(value, loc, scale, steps, row, step, columns, keep):  # type: ignore[no-untyped-def]
    """The residual divided by the scale, and the scale; 0 and 1 at dropped entries."""
    s = tl.where(keep, rows.load(rows.at(scale, steps, row, step), columns, keep), 1.0)
    mean = rows.load(rows.at(loc, steps, row, step), columns, keep)
    return (rows.load(rows.at(value, steps, row, step), columns, keep) - mean) / s, s


@triton.jit
def gradient_of(dout, steps, row, valid):  # type: ignore[no-untyped-def]
    """``[rows, 1]``: the gradient of the sum over time, read from dout [P, B]; zero past the end."""
    row, batch = row.to(tl.int32), rows.decoded(steps.batch)
    places = rows.entry_at(dout, (row // batch).to(tl.int64), (row % batch).to(tl.int64), 0)
    return tl.load(places, mask=valid, other=0.0).to(tl.float32)[:, None]


@rows.rowwise_kernel
def normal_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    value, loc, scale, steps, mask, terms, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: terms [P, B, T] is each step's sum over observed entries."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, _, valid = rows.every_place(steps, index)
    acc = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = rows.kept(mask, steps, row, step, columns, wide.D, valid)
        standard, s = standardized(value, loc, scale, steps, row, step, columns, keep)
        acc += tl.where(keep, -0.5 * standard * standard - tl.log(s) - HALF_LOG_2PI, 0.0)
    tl.store(terms + index, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def normal_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    dout, value, loc, scale, steps, mask, dvalue, dloc, dscale, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: from dout [P, B] the three gradients [P, B, T, D], zero at dropped entries."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, inside, valid = rows.every_place(steps, index)
    d = gradient_of(dout, steps, row, valid)
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = rows.kept(mask, steps, row, step, columns, wide.D, valid)
        standard, s = standardized(value, loc, scale, steps, row, step, columns, keep)
        to_loc = d * standard / s
        to_scale = tl.where(keep, d * (standard * standard - 1.0) / s, 0.0)
        rows.store_row(dvalue + index * wide.D, columns, wide.D, inside, -to_loc)
        rows.store_row(dloc + index * wide.D, columns, wide.D, inside, to_loc)
        rows.store_row(dscale + index * wide.D, columns, wide.D, inside, to_scale)


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over observed entries of log N(value; loc, scale)."""
    terms = sums.terms_of(value)
    read = map(rows.rows_of, (value, loc, scale))
    given = (*read, rows.steps_of(value, lengths), rows.entries_of(mask))
    rows.launch_wide(normal_log_prob_fwd_kernel, value, *given, terms)
    return sums.sum_steps(terms, value, lengths)


def normal_log_prob_backward(
    dout: Tensor, value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``dvalue, dloc, dscale``, each ``[P, B, T, D]``."""
    dvalue, dloc, dscale = (value.new_empty(value.shape) for _ in range(3))
    read = map(rows.rows_of, (value, loc, scale))
    given = (*read, rows.steps_of(value, lengths), rows.entries_of(mask))
    made = (dvalue, dloc, dscale)
    rows.launch_wide(normal_log_prob_bwd_kernel, value, sums.incoming(dout), *given, *made)
    return made


@rows.rowwise_kernel
def drawn_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    eps, pre_scale, steps, terms, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: terms [P, B, T] is a valid step's sum."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, _, valid = rows.every_place(steps, index)
    eps_row, pre_scale_row = rows.at(eps, steps, row, step), rows.at(pre_scale, steps, row, step)
    acc = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = valid[:, None] & (columns < wide.D)[None, :]
        e, s = rows.load(eps_row, columns, keep), rows.load(pre_scale_row, columns, keep)
        acc += tl.where(keep, drawn_log_density(e, s), 0.0)
    tl.store(terms + index, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def drawn_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    dout, eps, pre_scale, steps, deps, dpre_scale, terms, first, wide, BLOCK_M: tl.constexpr
):
    """A block of steps: from dout [P, B] both gradients [P, B, T, D], zero past the end.

    ``deps`` is not computed if it is None. Also writes each valid step's sum to terms [P, B, T] unless it is
    None.
    """
    index = rows.block_of_places(first, BLOCK_M)
    row, step, inside, valid = rows.every_place(steps, index)
    eps_row, pre_scale_row = rows.at(eps, steps, row, step), rows.at(pre_scale, steps, row, step)
    # Past the end both this gradient and the loaded values are zero.
    d = gradient_of(dout, steps, row, valid)
    acc = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        keep = valid[:, None] & (columns < wide.D)[None, :]
        e, s = rows.load(eps_row, columns, keep), rows.load(pre_scale_row, columns, keep)
        if deps is not None:
            rows.store_row(deps + index * wide.D, columns, wide.D, inside, -d * e)
        rows.store_row(dpre_scale + index * wide.D, columns, wide.D, inside, -d * log_softplus_slope(s))
        if terms is not None:
            acc += tl.where(keep, drawn_log_density(e, s), 0.0)
    if terms is not None:
        tl.store(terms + index, tl.sum(acc, 1), mask=valid)


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of the log-density of a draw, computed from its noise."""
    terms = sums.terms_of(eps)
    given = (rows.rows_of(eps), rows.rows_of(pre_scale), rows.steps_of(eps, lengths))
    rows.launch_wide(drawn_log_prob_fwd_kernel, eps, *given, terms)
    return sums.sum_steps(terms, eps, lengths)


def drawn_log_prob_backward(
    dout: Tensor, eps: Tensor, pre_scale: Tensor, lengths: Tensor, with_deps: bool, with_out: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``deps, dpre_scale``, each ``[P, B, T, Z]``, and the value ``[P, B]``.

    The first and the last are empty if not requested.
    """
    deps, dpre_scale = eps.new_empty(eps.shape if with_deps else (0,)), eps.new_empty(eps.shape)
    terms = sums.terms_of(eps) if with_out else None
    read = (sums.incoming(dout), rows.rows_of(eps), rows.rows_of(pre_scale), rows.steps_of(eps, lengths))
    made = (deps if with_deps else None, dpre_scale, terms)
    rows.launch_wide(drawn_log_prob_bwd_kernel, eps, *read, *made)
    return deps, dpre_scale, sums.sum_steps(terms, eps, lengths)
