"""Shared parts of the scans: a launch for each half of a step, each program with a tile of rows and columns.

Launches on a stream are ordered, which provides the barrier between steps. So each multiprocessor reads a
part of the weights, whereas a program that ran all steps alone would read all weights at every step, which
took 240 us per step of ``rnn_scan`` at 20 rows of 600 units on an H100. Launches pass data through scratch in
float32, which is small and stays in the L2 cache.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import INTERPRETED
from dmm_fast.triton.common import cdiv, input_precision
from dmm_fast.triton.layers import bias, linear_backward, tile
from dmm_fast.triton.rows import constants, decoded, load_row, store_row, width_block

# This many rows are at most 16 small tiles, each of which reads all weights.
FEW_ROWS = 128

# The indices of step and flow, for which kernels are not recompiled.
step_kernel = triton.jit(do_not_specialize=["t", "k"])


class Blocks(NamedTuple):
    """Block sizes of a layer (rows, outputs, inputs) and the precision of its products."""

    M: Any
    N: Any
    K: Any
    precision: Any


def blocks_for(rows: int, outputs: int, inputs: int) -> Blocks:
    """The block sizes of a layer: small blocks for few rows.

    With few rows, the time of a launch is the chain of sums over the inputs. With tiles for tensor cores a
    program has a chain of 225 dependent products for 600 inputs; with small tiles every thread has an output,
    and there is a program for each multiprocessor. Interpreted programs run sequentially, so fewer are used.
    """
    few = rows <= FEW_ROWS
    height, width, depth = (8, 16, 64) if few else (64, 32, 64)
    if INTERPRETED:
        height, width, depth = 16 if few else 32, 128, 128
    precision = input_precision("ieee" if few else "tf32x3")
    return constants(Blocks(height, width_block(outputs, width), width_block(inputs, depth), precision))


def launcher(
    kernel: Any, rows: int, width: int, inputs: int, *args: Any, **options: Any
) -> Callable[..., None]:
    """A function that launches ``kernel(*args, *numbers, blocks)`` over tiles of ``rows`` and ``width``.

    It launches on the current device.
    """
    blocks = blocks_for(rows, width, inputs)
    grid = (cdiv(rows, blocks.M.value), cdiv(width, blocks.N.value))

    def run(*numbers: int) -> None:
        kernel[grid](*args, *numbers, blocks, **options, num_warps=4, num_stages=3)

    return run


def stored_by_inputs(weights: Iterable[Tensor]) -> list[Tensor]:
    """Weights ``[..., outputs, inputs]`` transposed to be stored by inputs; biases unchanged; all contiguous.

    Adjacent threads, which have adjacent outputs, then read adjacent elements, which avoids 8-way bank
    conflicts in shared memory.
    """
    return [(each.mT if number % 2 == 0 else each).contiguous() for number, each in enumerate(weights)]


def started(start: Tensor, like: Tensor, copies: int = 1) -> Tensor:
    """``[copies, P, B, width]`` in float32: ``start``, expanded to the rows of ``like [P, B, ...]``."""
    shape = (copies, *like.shape[:2], start.shape[-1])
    return like.new_empty(shape, dtype=torch.float32).copy_(start)


@triton.jit
def linear(rows, valid, K, w, b, columns, N, blocks):  # type: ignore[no-untyped-def]
    """The given columns of a layer of rows of K features, its weight stored by inputs, ``[K, N]``."""
    return linear_backward(rows, valid, K, w, columns, N, blocks) + bias(b, columns, N)


@triton.jit
def linear_pair(rows, valid, K, w, b, other_w, other_b, columns, N, blocks):  # type: ignore[no-untyped-def]
    """The given columns of two layers of the same rows, with interleaved products."""
    acc = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    other = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    for k in range(0, K, blocks.K):
        ks = k + tl.arange(0, blocks.K)
        features = load_row(rows, ks, K, valid)
        acc = tl.dot(features, tile(w, columns, N, 1, ks, K, N), acc=acc, input_precision=blocks.precision)
        other_tile = tile(other_w, columns, N, 1, ks, K, N)
        other = tl.dot(features, other_tile, acc=other, input_precision=blocks.precision)
    return acc + bias(b, columns, N), other + bias(other_b, columns, N)


@triton.jit
def tile_of_step(steps, blocks):  # type: ignore[no-untyped-def]
    """``row, exists, length, columns`` of this program's tile; a row that does not exist has no steps."""
    row = tl.program_id(0).to(tl.int64) * blocks.M + tl.arange(0, blocks.M)
    exists = row < row_count(steps)
    length = tl.load(steps.lengths + row % decoded(steps.batch), mask=exists, other=0)
    # An invalid length must not cause an access outside of a tensor.
    length = tl.minimum(tl.maximum(length, 0), decoded(steps.steps))
    return row, exists, length, tl.program_id(1) * blocks.N + tl.arange(0, blocks.N)


@triton.jit
def row_count(steps):  # type: ignore[no-untyped-def]
    """The number of sequences of all particles."""
    return decoded(steps.particles).to(tl.int64) * decoded(steps.batch)


@triton.jit
def place_of(steps, row, t):  # type: ignore[no-untyped-def]
    """The index of step ``t`` of rows among all steps."""
    return row * decoded(steps.steps) + t


@triton.jit
def store_padded(to, place, columns, WIDTH, exists, active, value):  # type: ignore[no-untyped-def]
    """Write columns of the steps ``place`` of a tensor [P, B, T, WIDTH], with zeros past the ends of rows."""
    store_row(to + place * WIDTH, columns, WIDTH, exists, tl.where(active[:, None], value, 0.0))
