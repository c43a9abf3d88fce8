"""log p(x_{1:T} | z_{1:T}): emitter and log-density in one pass, a Bernoulli's or a Gaussian's."""

import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.densities import (
    bernoulli_log_density,
    bernoulli_slope,
    normal_log_density,
    normal_slopes,
)
from dmm_fast.kernels.emitter import (
    emitter_again,
    emitter_forward,
    emitter_head,
    emitter_rows,
    emitter_rows_backward,
    scratch_of,
    weights_backward,
)
from dmm_fast.kernels.rows import (
    at,
    block_of_places,
    decoded_steps,
    kept,
    load,
    mask_of,
    places,
    rows_of,
    rowwise_kernel,
    steps_of,
    store_row,
    sum_steps,
    terms_of,
)

__all__ = ["emission_log_prob", "emission_log_prob_backward"]


@rowwise_kernel
def emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, x, z, steps, mask, terms, work, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps: terms [P, B, T] is what is observed of each; work is [steps, E] of its own."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    h_2 = work + index * size.E
    emitter_rows(at(z, steps, row, step), valid, w, h_2, size, blocks)
    x_row = at(x, steps, row, step)
    acc = tl.zeros((BLOCK_M, blocks.N), tl.float32)
    for n in range(0, size.D, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = kept(mask, steps, row, step, columns, size.D, valid)
        value = load(x_row, columns, keep)
        out = emitter_head(h_2, valid, w.w_out, w.b_out, columns, size, blocks)
        if w.w_scale is None:
            term = bernoulli_log_density(value, out)
        else:
            pre_scale = emitter_head(h_2, valid, w.w_scale, w.b_scale, columns, size, blocks)
            term = normal_log_density(value, out, pre_scale)
        acc += tl.where(keep, term, 0.0)
    tl.store(terms + row * steps.steps + step, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def emission_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, x, z, steps, mask, dx, dz, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps, from dout [P, B]: dx (unless None) and dz [P, B, T, *], its rows of scratch."""
    steps = decoded_steps(steps)
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    emitter_again(at(z, steps, row, step), valid, w, own, size, blocks)
    x_row = at(x, steps, row, step)
    place = row * steps.steps + step
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, size.D, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = kept(mask, steps, row, step, columns, size.D, valid)
        value = load(x_row, columns, keep)
        out = emitter_head(own.h_2, valid, w.w_out, w.b_out, columns, size, blocks)
        if w.w_scale is None:
            by_out = tl.where(keep, d * bernoulli_slope(value, out), 0.0)
            by_value = tl.where(keep, d * out, 0.0)
        else:
            pre_scale = emitter_head(own.h_2, valid, w.w_scale, w.b_scale, columns, size, blocks)
            by_out, by_pre_scale = normal_slopes(value, out, pre_scale)
            by_out = tl.where(keep, d * by_out, 0.0)
            by_value = -by_out
            store_row(own.dpre_scale, columns, size.D, valid, tl.where(keep, d * by_pre_scale, 0.0))
        store_row(own.dout, columns, size.D, valid, by_out)
        if dx is not None:
            store_row(dx + place * size.D, columns, size.D, valid, by_value)
    emitter_rows_backward(own, valid, w, dz + place * size.Z, size, blocks)


def emission_log_prob(
    x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log p(x_t | z_t)."""
    terms = terms_of(z)
    given = (rows_of(x), rows_of(z), steps_of(z, lengths), mask_of(mask), terms)
    emitter_forward(emission_log_prob_fwd_kernel, weights, terms.numel(), *given)
    return sum_steps(terms, z, lengths)


def emission_log_prob_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
    mask: Tensor | None,
    with_dx: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``dx [P, B, T, D]``, or empty where it is not wanted, ``dz [P, B, T, Z]``, gradients of the weights."""
    P, B, T, _ = z.shape
    dx, dz = x.new_zeros(x.shape if with_dx else (0,)), z.new_zeros(z.shape)
    read = (dout.contiguous(), rows_of(x), rows_of(z), steps_of(z, lengths), mask_of(mask))
    given = (*read, dx if with_dx else None, dz)
    return dx, dz, weights_backward(emission_log_prob_bwd_kernel, weights, P * B * T, *given)
