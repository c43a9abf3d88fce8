"""Gaussian log-densities of given parameters, and of draws from their own noise."""

import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import log_softplus
from dmm_fast.kernels.densities import HALF_LOG_2PI, log_softplus_slope
from dmm_fast.kernels.rows import (
    at,
    block_of_places,
    every_place,
    kept,
    launch,
    load,
    load_row,
    mask_of,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
    sum_steps,
    terms_of,
    width_block,
)

__all__ = [
    "drawn_log_prob",
    "drawn_log_prob_backward",
    "normal_log_prob",
    "normal_log_prob_backward",
]


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
    value_row, loc_row, scale_row = (
        at(value, steps, row, step),
        at(loc, steps, row, step),
        at(scale, steps, row, step),
    )
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = kept(mask, steps, row, step, columns, WIDTH, valid)
        s = tl.where(keep, load(scale_row, columns, keep), 1.0)
        standard = (load(value_row, columns, keep) - load(loc_row, columns, keep)) / s
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
    value_row, loc_row, scale_row = (
        at(value, steps, row, step),
        at(loc, steps, row, step),
        at(scale, steps, row, step),
    )
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, WIDTH, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = kept(mask, steps, row, step, columns, WIDTH, valid)
        s = tl.where(keep, load(scale_row, columns, keep), 1.0)
        standard = (load(value_row, columns, keep) - load(loc_row, columns, keep)) / s
        to_loc = d * standard / s  # what is not to keep counts as a residual of zero
        to_scale = tl.where(keep, d * (standard * standard - 1.0) / s, 0.0)
        store_row(dvalue + index * WIDTH, columns, WIDTH, inside, -to_loc)
        store_row(dloc + index * WIDTH, columns, WIDTH, inside, to_loc)
        store_row(dscale + index * WIDTH, columns, WIDTH, inside, to_scale)


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log N(value; loc, scale)."""
    P, B, T, D = value.shape
    terms = terms_of(value)
    given = (rows_of(tensor) for tensor in (value, loc, scale))
    steps = steps_of(value, lengths)
    launch(
        *(normal_log_prob_fwd_kernel, P * B * T, value, *given, steps, mask_of(mask), terms),
        WIDTH=D,
        BLOCK_N=width_block(D, 128),
    )
    return sum_steps(terms, value, lengths)


def normal_log_prob_backward(
    dout: Tensor, value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``dvalue, dloc, dscale``, each ``[P, B, T, D]``."""
    P, B, T, D = value.shape
    dvalue, dloc, dscale = (value.new_empty(value.shape) for _ in range(3))
    given = (rows_of(tensor) for tensor in (value, loc, scale))
    out = (dvalue, dloc, dscale)
    launch(
        *(normal_log_prob_bwd_kernel, P * B * T, value, dout.contiguous(), *given),
        *(steps_of(value, lengths), mask_of(mask), *out),
        WIDTH=D,
        BLOCK_N=width_block(D, 128),
    )
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
        e = load_row(eps_row, columns, WIDTH, valid)
        s = load_row(pre_scale_row, columns, WIDTH, valid)
        store_row(deps + index * WIDTH, columns, WIDTH, inside, -d * e)
        store_row(dpre_scale + index * WIDTH, columns, WIDTH, inside, -d * log_softplus_slope(s))


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of the log-density of a draw from its own noise."""
    P, B, T, Z = eps.shape
    terms = terms_of(eps)
    given = (rows_of(eps), rows_of(pre_scale), steps_of(eps, lengths), terms)
    launch(drawn_log_prob_fwd_kernel, P * B * T, eps, *given, WIDTH=Z, BLOCK_N=width_block(Z, 128))
    return sum_steps(terms, eps, lengths)


def drawn_log_prob_backward(
    dout: Tensor, eps: Tensor, pre_scale: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """``deps, dpre_scale``, each ``[P, B, T, Z]``."""
    P, B, T, Z = eps.shape
    deps, dpre_scale = eps.new_empty(eps.shape), eps.new_empty(eps.shape)
    given = (dout.contiguous(), rows_of(eps), rows_of(pre_scale), steps_of(eps, lengths), deps, dpre_scale)
    launch(drawn_log_prob_bwd_kernel, P * B * T, eps, *given, WIDTH=Z, BLOCK_N=width_block(Z, 128))
    return deps, dpre_scale
