"""Shared parts of the two scans: a program has a block of rows, and multiplies them by weights step by step.

A program is alone on its rows for the whole scan, so its steps need no other program. What one of its
steps leaves for the next (or one half of a step for the other) goes through device memory, where every
thread can read all of it: the rows of a step are few and stay in the caches. Threads of a program see
each other's stores to device memory after ``tl.debug_barrier()``: it is CUDA's ``__syncthreads()``, which
orders global memory within the block as it does shared memory.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import cdiv, input_precision, on_device_of
from dmm_fast.triton.rows import constants, decoded, store_row, width_block

FEW_ROWS = 512


class Blocks(NamedTuple):
    """Block sizes of a layer (outputs, inputs) and the precision of its products."""

    N: Any
    K: Any
    precision: Any


def layer_blocks(outputs: int, inputs: int, most: int, exact: str = "ieee") -> Blocks:
    """The blocks of a layer of these widths, ``most`` outputs or fewer at a time.

    ``exact`` is the way it multiplies where tf32 is not allowed.
    """
    return constants(Blocks(width_block(outputs, most), width_block(inputs, 64), input_precision(exact)))


def rows_of_program(rows: int) -> int:
    """The number of rows that a program takes: few as long as every program has a multiprocessor of its own.

    Each program reads all weights at each step, some 64 bytes a cycle, which is the least that a step takes
    whatever the rows. Four rows of IEEE arithmetic take about as long as that, sixteen much longer; more
    than that would read the weights too often, and sixteen are what tensor cores multiply at once.
    """
    return 4 if rows <= FEW_ROWS else 16


def launch(kernel: Any, rows: int, on: Tensor, *args: Any, **options: Any) -> None:
    """Run ``kernel(*args, ...)``, a program for each block of ``rows`` rows, on the device of ``on``."""
    block = rows_of_program(rows)
    with on_device_of(on):
        kernel[(cdiv(rows, block),)](*args, **options, BLOCK_M=block, num_warps=8, num_stages=3)


@triton.jit
def block_of_rows(steps, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """``row, exists, length, longest`` of the rows of this program; one that does not exist has no steps."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = row < row_count(steps)
    length = tl.load(steps.lengths + row % decoded(steps.batch), mask=exists, other=0)
    return row, exists, length, tl.max(length, 0)


@triton.jit
def at_step(first, rows, t):  # type: ignore[no-untyped-def]
    """Pointers to the step ``t`` of rows of a tensor whose first steps are at ``first``.

    Finding a row takes a division, which the loop over the steps must not repeat.
    """
    return first + t * decoded(rows.stride_t)


@triton.jit
def row_count(steps):  # type: ignore[no-untyped-def]
    """The number of sequences of all particles."""
    return decoded(steps.particles).to(tl.int64) * decoded(steps.batch)


@triton.jit
def clear_past_longest(out, steps, row, exists, longest, WIDTH, BLOCK_N):  # type: ignore[no-untyped-def]
    """Zeros in the rows ``row`` of out [P, B, T, WIDTH] from the step ``longest`` on."""
    t = longest
    while t < decoded(steps.steps):
        for n in range(0, WIDTH, BLOCK_N):
            zeros = tl.zeros((row.shape[0], BLOCK_N), tl.float32)
            to = out + (row * decoded(steps.steps) + t) * WIDTH
            store_row(to, n + tl.arange(0, BLOCK_N), WIDTH, exists, zeros)
        t += 1
