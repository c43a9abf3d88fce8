"""Sums over time, and over the two paths by which the log-density of a chain depends on each z_t.

The order of each sum depends on sizes only, so the same call gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tuning
from dmm_fast.triton.common import cdiv, on_device_of
from dmm_fast.triton.rows import (
    Entries,
    Wide,
    constants,
    decoded,
    entries_of,
    every_place,
    load_row,
    rowwise_kernel,
    steps_of,
    store_row,
    width_block,
)

# Rows of terms that a program sums over time.
ROWS = tl.constexpr(4)


def terms_of(tensor: Tensor) -> Tensor:
    """Allocate one element per step of ``tensor [P, B, T, ...]``."""
    return tensor.new_empty(tensor.shape[:3], dtype=torch.float32)


def incoming(dout: Tensor) -> Entries | None:
    """The gradient of a sum over time, ``dout [P, B]`` with any strides, for a kernel.

    It is copied if it is not aligned to 16 bytes, for which the kernel would be recompiled.
    """
    return entries_of(dout if dout.data_ptr() % 16 == 0 else dout.clone())


@triton.jit
def sum_of_steps(terms, steps, out, block):  # type: ignore[no-untyped-def]
    """Write the sums over the valid steps of terms [P, B, T] for a block of rows of out [P, B]."""
    row, T = block.to(tl.int64) * ROWS + tl.arange(0, ROWS), decoded(steps.steps)
    inside = row < decoded(steps.batch) * decoded(steps.particles)
    length = tl.load(steps.lengths + row % decoded(steps.batch), mask=inside, other=0)
    length = tl.minimum(length, T)
    longest = tl.max(length, 0)
    acc = tl.zeros((ROWS, 128), tl.float32)
    first = tl.full((), 0, tl.int64)
    while first < longest:
        t = first + tl.arange(0, 128)
        acc += tl.load(terms + row[:, None] * T + t[None, :], mask=t[None, :] < length[:, None], other=0.0)
        first += 128
    tl.store(out + row, tl.sum(acc, 1).to(out.dtype.element_ty), mask=inside)


@rowwise_kernel
def sum_steps_kernel(terms, steps, out):  # type: ignore[no-untyped-def]
    """A block of rows: out [P, B] is the sum over the valid steps of terms [P, B, T]."""
    sum_of_steps(terms, steps, out, tl.program_id(0))


def sum_steps(terms: Tensor | None, like: Tensor, lengths: Tensor) -> Tensor:
    """``[P, B]`` with the dtype of ``like [P, B, T, ...]``: ``terms [P, B, T]`` summed in a fixed order.

    Empty, of shape ``(0,)``, if ``terms`` is None.
    """
    if terms is None:
        return like.new_empty(0)
    P, B = like.shape[:2]
    out = like.new_empty(P, B)
    if out.numel():
        with on_device_of(like):
            sum_steps_kernel[(cdiv(P * B, ROWS.value),)](terms, steps_of(like, lengths), out, num_warps=4)
    return out


@triton.jit
def join_paths(dvalue, dbefore, steps, dz, block, wide, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the sum of both paths to dz [P, B, T, D] for a block of M steps."""
    index = block.to(tl.int64) * M + tl.arange(0, M)
    row, step, inside, valid = every_place(steps, index)
    length = tl.load(steps.lengths + row % decoded(steps.batch), mask=inside, other=0)
    goes_on = valid & (step + 1 < tl.minimum(length, decoded(steps.steps)))
    for n in range(0, wide.D, wide.N):
        columns = n + tl.arange(0, wide.N)
        total = load_row(dbefore + (index + 1) * wide.D, columns, wide.D, goes_on)
        if dvalue is not None:
            total += load_row(dvalue + index * wide.D, columns, wide.D, valid)
        store_row(dz + index * wide.D, columns, wide.D, inside, total)


@triton.jit
def sum_of_starts(dbefore, steps, dz_0, block, each, wide):  # type: ignore[no-untyped-def]
    """Write a block of columns of dz_0 [starts, D]: sums over the ``each`` sequences that share a start.

    They are added in a fixed order.
    """
    across = (wide.D + 31) // 32
    start, columns = (block // across).to(tl.int64), (block % across) * 32 + tl.arange(0, 32)
    total = tl.zeros((32,), tl.float32)
    number = tl.arange(0, 64)
    while tl.min(number, 0) < each:
        row = start * each + number
        length = tl.load(steps.lengths + row % decoded(steps.batch), mask=number < each, other=0)
        begins = tl.minimum(length, decoded(steps.steps)) > 0
        total += tl.sum(load_row(dbefore + row * decoded(steps.steps) * wide.D, columns, wide.D, begins), 0)
        number += 64
    to = dz_0 + start * wide.D + columns
    tl.store(to, total.to(dz_0.dtype.element_ty), mask=columns < wide.D)


@triton.jit(do_not_specialize=["blocks", "starts", "each"])
def split_chain_kernel(  # type: ignore[no-untyped-def]
    dvalue, dbefore, steps, terms, dz, dz_0, out, blocks, starts, each, wide, BLOCK_M: tl.constexpr
):
    """A block of dz [P, B, T, D]; in further programs a block of dz_0, or of out [P, B]."""
    program = tl.program_id(0)
    if program < blocks:
        join_paths(dvalue, dbefore, steps, dz, program, wide, BLOCK_M)
    elif program < blocks + starts:
        sum_of_starts(dbefore, steps, dz_0, program - blocks, each, wide)
    elif terms is not None:
        sum_of_steps(terms, steps, out, program - blocks - starts)


def split_chain(
    dvalue: Tensor | None, dbefore: Tensor, start: Tensor, lengths: Tensor, terms: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``dz``, and ``dz_0`` like ``start``, from each step's gradients of z_t and z_{t-1}, ``[P, B, T, Z]``.

    The gradients are read only at valid steps; ``dvalue`` None stands for zeros. The third result is
    :func:`sum_steps` of ``terms``, computed in the same launch.
    """
    P, B, T, Z = dbefore.shape
    dz, dz_0 = start.new_empty(dbefore.shape), start.new_empty(start.shape)
    out = start.new_empty(0 if terms is None else (P, B))
    config, wide = tuning.by_rule(P * B * T), constants(Wide(Z, width_block(Z, 128)))
    blocks, starts = cdiv(P * B * T, config.BLOCK_M), start.shape[:2].numel()
    of_start = cdiv(Z, 32) * starts
    if programs := blocks + of_start + cdiv(out.numel(), ROWS.value):
        with on_device_of(dbefore):
            split_chain_kernel[(programs,)](
                *(dvalue, dbefore, steps_of(dz, lengths), terms, dz, dz_0, out),
                *(blocks, of_start, P * B // max(starts, 1)),
                wide,
                **config._asdict(),
            )
    return dz, dz_0, out
