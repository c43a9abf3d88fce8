"""Gaussian log-densities of given parameters, and of draws from their own noise."""

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import log_softplus
from dmm_fast.kernels.densities import HALF_LOG_2PI, log_softplus_slope
from dmm_fast.kernels.rows import (
    at,
    block_of_places,
    every_place,
    kept,
    launch_wide,
    load,
    mask_of,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
    sum_steps,
    terms_of,
)

__all__ = [
    "drawn_log_prob",
    "drawn_log_prob_backward",
    "normal_log_prob",
    "normal_log_prob_backward",
]


@triton.jit
def standardized(value, loc, scale, steps, row, step, columns, keep):  # type: ignore[no-untyped-def]
    """The residual over the scale, and the scale; what is not to keep counts as zero and one."""
    s = tl.where(keep, load(at(scale, steps, row, step), columns, keep), 1.0)
    mean = load(at(loc, steps, row, step), columns, keep)
    return (load(at(value, steps, row, step), columns, keep) - mean) / s, s


@rowwise_kernel
def normal_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    value,
    loc,
    scale,
    steps,
    mask,
    terms,
    first,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of steps: terms [P, B, T] is a step's sum over what is observed of it."""
    index = block_of_places(first, BLOCK_M)
    row, step, _, valid = every_place(steps, index)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = kept(mask, steps, row, step, columns, WIDTH, valid)
        standard, s = standardized(value, loc, scale, steps, row, step, columns, keep)
        acc += tl.where(keep, -0.5 * standard * standard - tl.log(s) - HALF_LOG_2PI, 0.0)
    tl.store(terms + index, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def normal_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    dout,
    value,
    loc,
    scale,
    steps,
    mask,
    dvalue,
    dloc,
    dscale,
    first,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of steps: from dout [P, B] the three gradients [P, B, T, WIDTH], zero where nothing counts."""
    index = block_of_places(first, BLOCK_M)
    row, step, inside, valid = every_place(steps, index)
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = kept(mask, steps, row, step, columns, WIDTH, valid)
        standard, s = standardized(value, loc, scale, steps, row, step, columns, keep)
        to_loc = d * standard / s
        to_scale = tl.where(keep, d * (standard * standard - 1.0) / s, 0.0)
        store_row(dvalue + index * WIDTH, columns, WIDTH, inside, -to_loc)
        store_row(dloc + index * WIDTH, columns, WIDTH, inside, to_loc)
        store_row(dscale + index * WIDTH, columns, WIDTH, inside, to_scale)


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log N(value; loc, scale)."""
    terms = terms_of(value)
    given = (rows_of(value), rows_of(loc), rows_of(scale), steps_of(value, lengths), mask_of(mask))
    launch_wide(normal_log_prob_fwd_kernel, value, *given, terms)
    return sum_steps(terms, value, lengths)


def normal_log_prob_backward(
    dout: Tensor, value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``dvalue, dloc, dscale``, each ``[P, B, T, D]``."""
    dvalue, dloc, dscale = (value.new_empty(value.shape) for _ in range(3))
    given = (rows_of(value), rows_of(loc), rows_of(scale), steps_of(value, lengths), mask_of(mask))
    launch_wide(normal_log_prob_bwd_kernel, value, dout.contiguous(), *given, dvalue, dloc, dscale)
    return dvalue, dloc, dscale


@rowwise_kernel
def drawn_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    eps, pre_scale, steps, terms, first, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A block of steps: terms [P, B, T] is a valid step's sum."""
    index = block_of_places(first, BLOCK_M)
    row, step, _, valid = every_place(steps, index)
    eps_row, pre_scale_row = at(eps, steps, row, step), at(pre_scale, steps, row, step)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = valid[:, None] & (columns < WIDTH)[None, :]
        e, s = load(eps_row, columns, keep), load(pre_scale_row, columns, keep)
        acc += tl.where(keep, -0.5 * e * e - log_softplus(s) - HALF_LOG_2PI, 0.0)
    tl.store(terms + index, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def drawn_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    dout,
    eps,
    pre_scale,
    steps,
    deps,
    dpre_scale,
    first,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of steps: from dout [P, B] both gradients [P, B, T, WIDTH], zero past the end."""
    index = block_of_places(first, BLOCK_M)
    row, step, inside, valid = every_place(steps, index)
    eps_row, pre_scale_row = at(eps, steps, row, step), at(pre_scale, steps, row, step)
    # Past the end this is zero, and so is what is loaded.
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = valid[:, None] & (columns < WIDTH)[None, :]
        e, s = load(eps_row, columns, keep), load(pre_scale_row, columns, keep)
        store_row(deps + index * WIDTH, columns, WIDTH, inside, -d * e)
        store_row(dpre_scale + index * WIDTH, columns, WIDTH, inside, -d * log_softplus_slope(s))


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of the log-density of a draw from its own noise."""
    terms = terms_of(eps)
    given = (rows_of(eps), rows_of(pre_scale), steps_of(eps, lengths))
    launch_wide(drawn_log_prob_fwd_kernel, eps, *given, terms)
    return sum_steps(terms, eps, lengths)


def drawn_log_prob_backward(
    dout: Tensor, eps: Tensor, pre_scale: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """``deps, dpre_scale``, each ``[P, B, T, Z]``."""
    deps, dpre_scale = eps.new_empty(eps.shape), eps.new_empty(eps.shape)
    given = (rows_of(eps), rows_of(pre_scale), steps_of(eps, lengths))
    launch_wide(drawn_log_prob_bwd_kernel, eps, dout.contiguous(), *given, deps, dpre_scale)
    return deps, dpre_scale
