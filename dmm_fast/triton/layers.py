"""Linear layers within a rowwise kernel, forward and backward, and the gradients of their weights.

A layer reads its rows from memory, a block of features at a time, so a kernel's blocks have a fixed size
for any widths. Threads of a program see each other's stores after ``tl.debug_barrier()``, which is CUDA's
``__syncthreads()``.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import input_precision
from dmm_fast.triton.rows import Steps, constants, launch, load_row, store_row, width_block
from dmm_fast.triton.weight_gradients import Layer
from dmm_fast.triton.weight_gradients import weight_gradients as products_of_rows

# Rows of scratch that a backward pass keeps at a time, a multiple of every block of rows; longer batches are
# taken in parts.
SCRATCH_ROWS = 1 << 15


class Blocks(NamedTuple):
    """Block sizes of a layer (hidden units, outputs, inputs) and the precision of its products."""

    H: Any
    N: Any
    K: Any
    precision: Any


BlocksFor = Callable[[int, int], Blocks]
"""A function from the widths of the widest hidden layer and of the outputs to block sizes."""


def forward_blocks(hidden: int, outputs: int) -> Blocks:
    """Blocks for a layer fused with the next: hidden units in slices, all outputs at once if they are few."""
    sizes = width_block(hidden, 32), width_block(outputs, 128), width_block(max(hidden, outputs), 16)
    return constants(Blocks(*sizes, input_precision()))


def backward_blocks(hidden: int, outputs: int) -> Blocks:
    """Blocks for passes that store every layer in scratch."""
    sizes = width_block(hidden, 64), width_block(outputs, 64), width_block(max(hidden, outputs), 16)
    return constants(Blocks(*sizes, input_precision()))


@triton.jit
def bias(pointer, columns, WIDTH):  # type: ignore[no-untyped-def]
    """``[1, columns]`` of a bias in float32."""
    return tl.load(pointer + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def tile(w, columns, N, stride_n, ks, K, stride_k):  # type: ignore[no-untyped-def]
    """``[ks, columns]`` of a weight in float32, zero outside of it; (n, k) is at n stride_n + k stride_k."""
    inside = (ks < K)[:, None] & (columns < N)[None, :]
    pointers = w + ks[:, None].to(tl.int64) * stride_k + columns[None, :].to(tl.int64) * stride_n
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def product(rows, valid, K, w, columns, N, stride_n, stride_k, blocks):  # type: ignore[no-untyped-def]
    """``[rows, columns]``: rows of K features times the columns of a weight, laid out as in :func:`tile`."""
    acc = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    for k in range(0, K, blocks.K):
        ks = k + tl.arange(0, blocks.K)
        weight = tile(w, columns, N, stride_n, ks, K, stride_k)
        acc = tl.dot(load_row(rows, ks, K, valid), weight, acc=acc, input_precision=blocks.precision)
    return acc


@triton.jit
def linear(rows, valid, K, w, b, columns, N, blocks):  # type: ignore[no-untyped-def]
    """The given columns of ``W x + b`` for rows x of K features and ``w [N, K]``."""
    return product(rows, valid, K, w, columns, N, K, 1, blocks) + bias(b, columns, N)


@triton.jit
def linear_backward(drows, valid, N, w, columns, K, blocks):  # type: ignore[no-untyped-def]
    """The given columns of the gradient of x in :func:`linear`, from that of its N outputs."""
    return product(drows, valid, N, w, columns, K, 1, K, blocks)


@triton.jit
def copy_rows(rows, valid, to, WIDTH, blocks):  # type: ignore[no-untyped-def]
    """Copy the rows to ``to``, in float32."""
    for n in range(0, WIDTH, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        store_row(to, columns, WIDTH, valid, load_row(rows, columns, WIDTH, valid))


@triton.jit
def relu(x):  # type: ignore[no-untyped-def]
    """max(x, 0), which propagates NaN."""
    return tl.where(x < 0.0, 0.0, x)


class Network(NamedTuple):
    """A network as an argument of kernels: contiguous weights by name, and sizes and blocks as constants."""

    w: Any
    size: Any
    blocks: Blocks


def launch_network(kernel: Any, network: Network, count: int, *args: Any, first: int = 0) -> None:
    """Run ``kernel(w, *args, first, size, blocks)`` over ``count`` places."""
    w, size, blocks = network
    launch(kernel, count, w[0], w, *args, first=first, size=size, blocks=blocks)


def in_parts(count: int) -> Iterator[tuple[int, int]]:
    """``first, size`` of each part of ``count`` places of a backward pass; at least one part."""
    for first in range(0, max(count, 1), SCRATCH_ROWS):
        yield first, min(SCRATCH_ROWS, count - first)


def weight_gradients(
    fill: Callable[[Tensor, int], None],
    weights: list[Tensor],
    steps: Steps,
    count: int,
    *,
    layers: list[tuple[slice, slice]],
) -> list[Tensor]:
    """Gradients of weights and biases: GEMMs over the rows of scratch, part by part.

    ``fill(scratch, first)`` writes the rows of scratch for the valid places of ``steps`` from ``first`` on;
    only these are read. For each weight with its bias, ``layers`` has the columns of the gradient of the
    layer's outputs and the columns of its inputs.
    """
    width = max(delta.stop for delta, _ in layers)
    dtype = weights[0].dtype if count <= SCRATCH_ROWS else torch.float32
    totals: list[Tensor] = []
    for first, size in in_parts(count):
        scratch = torch.empty(size, width, dtype=torch.float32, device=weights[0].device)
        fill(scratch, first)
        of_rows = [Layer(scratch[:, delta], scratch[:, inputs]) for delta, inputs in layers]
        parts = products_of_rows(of_rows, steps, dtype, first)
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
    return [total.to(w.dtype) for total, w in zip(totals, weights, strict=True)]


def stacked(*widths: int) -> list[slice]:
    """Columns of these widths, side by side."""
    ends = list(accumulate(widths))
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
