"""What the two scans share: a program has a block of rows, and multiplies them by weights step by step.

A program is alone on its rows for the whole scan, so its steps need no other program. What one of its
steps leaves for the next (or one half of a step for the other) goes through device memory, where every
thread can read all of it: the rows of a step are few and stay in the caches. Threads of a program see
each other's stores to device memory after ``tl.debug_barrier()``: it is CUDA's ``__syncthreads()``, which
orders global memory within the block as it does shared memory.
"""

import triton
import triton.language as tl

from dmm_fast.kernels.common import cdiv, next_power_of_2

LAUNCH = {"num_warps": 8, "num_stages": 3}
FEW_ROWS = 512


def rows_of_program(rows: int) -> int:
    """How many rows a program takes: few as long as every program has a multiprocessor of its own.

    Each program reads all weights at each step, some 64 bytes a cycle, which is the least that a step takes
    whatever the rows. Four rows of IEEE arithmetic take about as long as that, sixteen much longer; more
    than that would read the weights too often, and sixteen are what tensor cores multiply at once.
    """
    return 4 if rows <= FEW_ROWS else 16


def grid(rows: int) -> tuple[int]:
    """A program for each block of rows."""
    return (cdiv(rows, rows_of_program(rows)),)


def tile(size: int, most: int) -> int:
    """How wide a block of ``size`` outputs or inputs is: at least what ``tl.dot`` takes."""
    return min(max(next_power_of_2(size), 16), most)


@triton.jit
def block_of_rows(lengths, rows, batch, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``row, exists, length, longest`` of the rows of this program; one that does not exist has no steps."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    length = tl.load(lengths + row % batch, mask=exists, other=0)
    return row, exists, length, tl.max(length, 0)


@triton.jit
def rows_times(  # type: ignore[no-untyped-def]
    rows,
    keep,
    w,
    stride_k,
    stride_n,
    n,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``[ROWS, BLOCK_N]``: the products of some rows with the columns ``n`` of a weight ``[K, N]``.

    ``rows`` points to the first of the K dense numbers of each row; a row that is not to ``keep`` is not
    read and counts as zeros.
    """
    n = n.to(tl.int64)
    sums = tl.zeros([rows.shape[0], n.shape[0]], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        a = tl.load(rows[:, None] + k[None, :], mask=keep[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(
            w + k[:, None] * stride_k + n[None, :] * stride_n,
            mask=(k < K)[:, None] & (n < N)[None, :],
            other=0.0,
        )
        sums = tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision=PRECISION)
    return sums


@triton.jit
def clear_steps(out, keep, begin, end, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Zeros at the steps from ``begin`` up to ``end`` of rows that begin at ``out [ROWS]``."""
    t = begin
    while t < end:
        for start in range(0, WIDTH, BLOCK):
            n = start + tl.arange(0, BLOCK)
            zeros = tl.zeros([out.shape[0], BLOCK], tl.float32)
            tl.store(
                out[:, None] + t * WIDTH + n[None, :],
                zeros.to(out.dtype.element_ty),
                mask=keep[:, None] & (n < WIDTH)[None, :],
            )
        t += 1
