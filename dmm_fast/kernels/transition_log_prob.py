"""log p(z_{1:T}) of the prior chain: gated transition and Gaussian log-density in one pass."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.densities import normal_log_density, normal_slopes
from dmm_fast.kernels.rows import (
    at,
    before,
    block_of_places,
    load_row,
    places,
    rows_of,
    rowwise_kernel,
    split_chain,
    steps_of,
    store_row,
    sum_steps,
    terms_of,
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

__all__ = ["transition_log_prob", "transition_log_prob_backward"]


@rowwise_kernel
def transition_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, z_0, steps, terms, work, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps: terms [P, B, T] is the log-density of each; work is [steps, 2 Z] of its own."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = work + index * 2 * size.Z
    transition_rows(before(z, z_0, steps, row, step), valid, w, own, size, blocks)
    value = at(z, steps, row, step)
    acc = tl.zeros((BLOCK_M, blocks.N), tl.float32)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = transition_head(own, valid, w, columns, size, blocks)
        term = normal_log_density(load_row(value, columns, size.Z, valid), loc, pre_scale)
        acc += tl.where((columns < size.Z)[None, :], term, 0.0)
    tl.store(terms + row * steps.steps + step, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def transition_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, z, z_0, steps, dvalue, dbefore, scratch, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps, from dout [P, B]: gradients by z_t and z_{t-1} [P, B, T, Z], and scratch."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    transition_again(before(z, z_0, steps, row, step), valid, w, own, size, blocks)
    value = at(z, steps, row, step)
    to = (row * steps.steps + step) * size.Z
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = transition_head_again(own, valid, w, columns, size, blocks)
        by_loc, by_pre_scale = normal_slopes(load_row(value, columns, size.Z, valid), loc, pre_scale)
        transition_head_backward(own, valid, columns, d * by_loc, d * by_pre_scale, size)
        store_row(dvalue + to, columns, size.Z, valid, -d * by_loc)
    transition_rows_backward(own, valid, w, dbefore + to, size, blocks)


def transition_log_prob(z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    """``[P, B]``: the sum over valid steps of log N(z_t; gated_transition(z_{t-1}))."""
    terms = terms_of(z)
    given = (rows_of(z), rows_of(z_0), steps_of(z, lengths))
    transition_forward(transition_log_prob_fwd_kernel, weights, terms.numel(), *given, terms)
    return sum_steps(terms, z, lengths)


def transition_log_prob_backward(
    dout: Tensor, z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``dz [P, B, T, Z]``, ``dz_0 [P, B, Z]`` and the gradients of the weights."""
    P, B, T, _ = z.shape
    dvalue, dbefore = (z.new_empty(z.shape, dtype=torch.float32) for _ in range(2))
    given = (dout.contiguous(), rows_of(z), rows_of(z_0), steps_of(z, lengths), dvalue, dbefore)
    dweights = weights_backward(transition_log_prob_bwd_kernel, weights, P * B * T, *given)
    return *split_chain(dvalue, dbefore, z, lengths), dweights
