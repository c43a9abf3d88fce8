"""The analytic KL from given Gaussian steps to the prior's: gated transition and divergence in one pass."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.densities import normal_kl, normal_kl_slopes
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

__all__ = ["transition_kl", "transition_kl_backward"]


@rowwise_kernel
def transition_kl_fwd_kernel(  # type: ignore[no-untyped-def]
    w, z, loc, pre_scale, z_0, steps, terms, work, first, size, blocks, BLOCK_M: tl.constexpr
):
    """A block of valid steps: terms [P, B, T] is the divergence of each; work is [steps, 2 Z] of its own."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = work + index * 2 * size.Z
    transition_rows(before(z, z_0, steps, row, step), valid, w, own, size, blocks)
    loc_row, pre_scale_row = at(loc, steps, row, step), at(pre_scale, steps, row, step)
    acc = tl.zeros((BLOCK_M, blocks.N), tl.float32)
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc_p, pre_scale_p = transition_head(own, valid, w, columns, size, blocks)
        loc_q = load_row(loc_row, columns, size.Z, valid)
        pre_scale_q = load_row(pre_scale_row, columns, size.Z, valid)
        term = normal_kl(loc_q, pre_scale_q, loc_p, pre_scale_p)
        acc += tl.where((columns < size.Z)[None, :], term, 0.0)
    tl.store(terms + row * steps.steps + step, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def transition_kl_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    dout,
    z,
    loc,
    pre_scale,
    z_0,
    steps,
    dloc,
    dpre_scale,
    dbefore,
    scratch,
    first,
    size,
    blocks,
    BLOCK_M: tl.constexpr,
):
    """A block of valid steps, from dout [P, B]: three gradients [P, B, T, Z], dbefore by z_{t-1}; scratch."""
    index = block_of_places(first, BLOCK_M)
    row, step, valid = places(steps, index)
    own = scratch_of(scratch, index - first, size)
    transition_again(before(z, z_0, steps, row, step), valid, w, own, size, blocks)
    loc_row, pre_scale_row = at(loc, steps, row, step), at(pre_scale, steps, row, step)
    to = (row * steps.steps + step) * size.Z
    d = tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]
    for n in range(0, size.Z, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc_p, pre_scale_p = transition_head_again(own, valid, w, columns, size, blocks)
        loc_q = load_row(loc_row, columns, size.Z, valid)
        pre_scale_q = load_row(pre_scale_row, columns, size.Z, valid)
        by_loc, by_pre_scale, by_pre_scale_p = normal_kl_slopes(loc_q, pre_scale_q, loc_p, pre_scale_p)
        transition_head_backward(own, valid, columns, -d * by_loc, d * by_pre_scale_p, size)
        store_row(dloc + to, columns, size.Z, valid, d * by_loc)
        store_row(dpre_scale + to, columns, size.Z, valid, d * by_pre_scale)
    transition_rows_backward(own, valid, w, dbefore + to, size, blocks)


def transition_kl(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> Tensor:
    """``[P, B]``: the sum over valid steps of KL(N(loc, softplus(pre_scale)) || p(z_t | z_{t-1}))."""
    terms = terms_of(z)
    rows = (rows_of(tensor) for tensor in (z, loc, pre_scale, z_0))
    given = (*rows, steps_of(z, lengths), terms)
    transition_forward(transition_kl_fwd_kernel, weights, terms.numel(), *given)
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
    rows = (rows_of(tensor) for tensor in (z, loc, pre_scale, z_0))
    given = (dout.contiguous(), *rows, steps_of(z, lengths), dloc, dpre_scale, dbefore)
    dweights = weights_backward(transition_kl_bwd_kernel, weights, P * B * T, *given)
    # A step's divergence does not depend on z_t itself.
    dz, dz_0 = split_chain(None, dbefore, z, lengths)
    return dz, dloc, dpre_scale, dz_0, dweights
