"""Gradients of several weights and biases in one launch: split-K GEMMs over all rows of a batch.

A layer's weight gradient is ``delta^T @ inputs`` over thousands of rows and has few elements, so each tile is
computed by several programs, each with a share of the rows (split-K); a second launch adds their partial sums
in a fixed order. A bias is one more column, whose inputs are all one.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import cdiv, input_precision, on_device_of
from dmm_fast.triton.rows import Blocks, Steps, constants, decoded, encoded
from dmm_fast.triton.runs import Neighbours, find_places, lengths_of, next_places, place_count, rows_of_places
from dmm_fast.triton.side_stream import side_stream_of
from dmm_fast.triton.tuning import Tiles


class Cut(NamedTuple):
    """Tiles, the desired number of programs, and the precision of float32 products without tf32.

    A tile is of outputs by inputs, and summed over a block of rows at a time.
    """

    tiles: Tiles = Tiles()
    programs: int = 528
    precision: str = "bf16x6"


# The fastest on an H100 at the tutorial's sizes: a launch with many sums is limited by loads, one with few by
# its number of programs. Each of the 132 multiprocessors runs four programs of the kernel for a single layer,
# and three of those for several layers.
MANY_SUMS, FEW_SUMS = Cut(), Cut(Tiles(BLOCK_N=32), programs=768, precision="tf32x3")
MANY = 150_000
OF_SEVERAL = 396

ADDED = 1024  # elements of a program of the second launch


class Layer(NamedTuple):
    """A layer: ``delta`` is the gradient of its outputs; its inputs are rows of ``inputs``.

    All are matrices with dense columns. With a ``start``, the inputs are those of the neighbouring step, or
    the row of ``start`` beyond the end of a sequence. With ``other``, they are the mean of both.
    """

    delta: Tensor
    inputs: Tensor
    start: Tensor | None = None
    other: Tensor | None = None
    with_bias: bool = True


class _Product(NamedTuple):
    """A layer as an argument of a kernel, with its tiles and the offset of its partial sums."""

    delta: Any
    inputs: Any
    start: Any
    other: Any
    size: Any


class _Size(NamedTuple):
    """Constants of a layer: outputs, inputs, row strides, and the offsets of its tiles and sums."""

    M: Any
    N: Any
    with_bias: Any
    delta: Any
    inputs: Any
    start: Any
    other: Any
    first_tile: Any
    tiles: Any
    across: Any
    first_sum: Any


class _Sum(NamedTuple):
    """The destination of a layer's gradients, the offset of its sums, and the programs that add them."""

    weight: Any
    bias: Any
    weights: Any
    all: Any
    first_sum: Any
    first_program: Any
    programs: Any


class _Summed(NamedTuple):
    """A matrix whose rows are summed, the destination, and the first program that does it; encoded."""

    rows: Any
    total: Any
    height: int
    width: int
    first_program: int


def weight_gradients(
    layers: list[Layer],
    steps: Steps,
    dtype: torch.dtype,
    first: int = 0,
    neighbours: Neighbours | None = None,
    starts: Tensor | None = None,
    *,
    aside: bool = True,
    into: Sequence[tuple[Tensor, Tensor | None]] | None = None,
) -> list[Tensor]:
    """The gradients of each layer's weight ``[M, N]`` and, with a bias, of the bias ``[M]``, in order.

    They are followed by the sum of the rows of ``starts [rows, width]``, contiguous, if that is given.

    With ``neighbours``, rows are all steps ``[P, B, T]``, of which the valid ones are read. Without, rows are
    the valid steps with indices from ``first`` on.

    With ``aside``, they are computed on the current stream's side stream, if it has one; nothing may then
    read or change them before the streams join.

    They are written to each layer's weight and bias in ``into``, if given.
    """
    count = layers[0].delta.shape[0]
    made = [_made(layer, dtype) for layer in layers] if into is None else into
    out = [gradient for pair in made for gradient in pair if gradient is not None]
    if starts is not None:
        out.append(starts.new_empty(starts.shape[1]))
    if count == 0:  # without steps the sum of starts is zero too
        return [gradient.zero_() for gradient in out]
    cut = cut_for(sum(gradient.numel() for gradient in out), len(layers))
    products, tiles, sums = _products(layers, cut.tiles)
    splits = _splits(tiles, count, cut)
    partial = layers[0].delta.new_empty((splits, sums), dtype=torch.float32)
    blocks = constants(Blocks(*cut.tiles[:3], input_precision(cut.precision)))
    side = side_stream_of(partial) if aside else None
    taken = chain((partial, steps.lengths, starts), *(layer[:4] for layer in layers))
    with on_device_of(partial), nullcontext() if side is None else side.launches(taken, out):
        products_kernel[(tiles, splits)](
            *(products, neighbours, steps, partial),
            *(first, count, splits, sums),
            blocks,
            LAYERS=len(layers),
            num_warps=cut.tiles.num_warps,
            num_stages=cut.tiles.num_stages,
        )
        targets, programs = _targets(made)
        summed = None
        if starts is not None:
            summed = _Summed(starts, out[-1], *map(encoded, (*starts.shape, programs)))
            programs += cdiv(starts.shape[1], 128)
        sums_kernel[(programs,)](
            targets, summed, partial, sums, LAYERS=len(layers), SPLITS=splits, BLOCK=ADDED
        )
    return out


def _made(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    M, N = layer.delta.shape[1], layer.inputs.shape[1]
    weight = layer.delta.new_empty((M, N), dtype=dtype)
    return weight, weight.new_empty(M) if layer.with_bias else None


def cut_for(sums: int, layers: int) -> Cut:
    """The tiling of a launch with ``sums`` sums of ``layers`` layers."""
    cut = FEW_SUMS if sums < MANY else MANY_SUMS
    return cut if layers == 1 else cut._replace(programs=OF_SEVERAL)


def _products(layers: list[Layer], cut: Tiles) -> tuple[tuple[_Product, ...], int, int]:
    """The layers for the first kernel, and their numbers of tiles and sums."""
    products, tiles, sums = [], 0, 0
    for layer in layers:
        M, N = layer.delta.shape[1], layer.inputs.shape[1]
        across = cdiv(N + layer.with_bias, cut.BLOCK_N)
        own = cdiv(M, cut.BLOCK_M) * across
        tensors = layer[:4]
        delta, inputs, start, other = (0 if tensor is None else tensor.stride(0) for tensor in tensors)
        size = _Size(M, N, layer.with_bias, delta, inputs, start, other, tiles, own, across, sums)
        products.append(_Product(*tensors, constants(size)))
        tiles, sums = tiles + own, sums + M * (N + layer.with_bias)
    return tuple(products), tiles, sums


def _targets(made: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[tuple[_Sum, ...], int]:
    """The gradients for the second kernel, and the number of programs they need."""
    targets, programs, sums = [], 0, 0
    for weight, bias in made:
        weights = weight.numel()
        every = weights + (0 if bias is None else bias.numel())
        own = cdiv(every, ADDED)
        numbers = (tl.constexpr(number) for number in (weights, every, sums, programs, own))
        targets.append(_Sum(weight, bias, *numbers))
        programs, sums = programs + own, sums + every
    return tuple(targets), programs


def _splits(tiles: int, count: int, cut: Cut) -> int:
    """The number of shares of the rows, rounded to three binary digits, so that few kernels are compiled."""
    most = max(1, min(cut.programs // tiles, count // (4 * cut.tiles.BLOCK_K)))
    digits = max(0, most.bit_length() - 3)
    return most >> digits << digits


@triton.jit
def valid_count(steps):  # type: ignore[no-untyped-def]
    """The number of valid steps."""
    if steps.lengths is None:
        total = tl.full((), 1, tl.int64) * decoded(steps.batch) * decoded(steps.steps)
    else:
        total = tl.full((), 0, tl.int64)
        b = 0
        while b < decoded(steps.batch):
            total += tl.sum(lengths_of(steps, b + tl.arange(0, 64)), 0)
            b += 64
    return total * decoded(steps.particles)


@triton.jit
def rows_at(pointer, rows, stride, columns, width, inside):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` of a matrix in float32; zero at rows not inside and beyond the width."""
    keep = inside[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def inputs_at(product, own, neighbour, n, inside):  # type: ignore[no-untyped-def]
    """The columns ``n`` of a layer's inputs, followed by a column of ones if it has a bias."""
    size = product.size
    if product.start is None:
        inputs = rows_at(product.inputs, own, size.inputs, n, size.N, inside)
    else:
        begins = neighbour < 0
        row = tl.where(
            begins,
            product.start + (-1 - neighbour) * size.start,
            product.inputs + neighbour * size.inputs,
        )
        keep = inside[:, None] & (n < size.N)[None, :]
        inputs = tl.load(row[:, None] + n[None, :], mask=keep, other=0.0).to(tl.float32)
    if product.other is not None:
        inputs = 0.5 * (inputs + rows_at(product.other, own, size.other, n, size.N, inside))
    # Done also without a bias: a value used directly in a transposed product would be loaded by four bytes.
    return tl.where((n == size.N)[None, :], 1.0 if size.with_bias else 0.0, inputs)


@triton.jit
def add_rows(acc, product, own, neighbour, inside, m, n, precision):  # type: ignore[no-untyped-def]
    """``acc`` [inputs, outputs] plus the products of these rows."""
    delta = rows_at(product.delta, own, product.size.delta, m, product.size.M, inside)
    inputs = inputs_at(product, own, neighbour, n, inside)
    return tl.dot(tl.trans(inputs), delta, acc=acc, input_precision=precision)


@triton.jit
def multiply_tile(  # type: ignore[no-untyped-def]
    product, neighbours, steps, partial, tile, begin, end, total, blocks
):
    """Write the partial sums of a layer's tile over the rows from ``begin`` to ``end``."""
    size = product.size
    m = (tile // size.across) * blocks.M + tl.arange(0, blocks.M)
    n = (tile % size.across) * blocks.N + tl.arange(0, blocks.N)
    acc = tl.zeros((blocks.N, blocks.M), tl.float32)
    lane = tl.arange(0, blocks.K)
    if neighbours is None:
        for k in range(begin, end, blocks.K):
            row = k + lane
            acc = add_rows(acc, product, row.to(tl.int64), row, row < end, m, n, blocks.precision)
    else:
        run = tl.cdiv(tl.maximum(end - begin, 0), blocks.K)
        number = begin + lane * run
        place = find_places(steps, number, total)
        for i in range(0, run):
            own, neighbour = rows_of_places(place, steps, neighbours)
            inside = (number + i < end) & (place.t < place.length)
            acc = add_rows(acc, product, own, neighbour, inside, m, n, blocks.precision)
            # Computed one iteration ahead: the compiler prefetches loads only if their addresses are known.
            place = next_places(place, steps)
    acc = tl.trans(acc)
    to = partial + size.first_sum
    keep = (m < size.M)[:, None] & (n < size.N)[None, :]
    tl.store(to + m[:, None] * size.N + n[None, :], acc, mask=keep)
    if size.with_bias:
        keep = (m < size.M)[:, None] & (n == size.N)[None, :]
        tl.store(to + size.M * size.N + m[:, None] + tl.zeros_like(n)[None, :], acc, mask=keep)


@triton.jit(do_not_specialize=["first", "count", "splits"])
def products_kernel(  # type: ignore[no-untyped-def]
    products, neighbours, steps, partial, first, count, splits, sums, blocks, LAYERS: tl.constexpr
):
    """A tile of one of the GEMMs over a share of the valid rows, written to partial [splits, sums]."""
    if neighbours is None:
        total = tl.minimum(tl.maximum(valid_count(steps) - first, 0), count).to(tl.int32)
        rows = total
    else:
        total = place_count(steps)
        rows = total * decoded(steps.particles)
    share = tl.cdiv(tl.cdiv(rows, splits), blocks.K) * blocks.K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, rows)
    own = partial + tl.program_id(1).to(tl.int64) * sums
    tile = tl.program_id(0)
    for i in tl.static_range(LAYERS):
        size = products[i].size
        if (tile >= size.first_tile) & (tile < size.first_tile + size.tiles):
            multiply_tile(
                *(products[i], neighbours, steps, own), tile - size.first_tile, begin, end, total, blocks
            )


@triton.jit
def sums_kernel(  # type: ignore[no-untyped-def]
    targets, summed, partial, sums, LAYERS: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """A block of a layer's gradients, the sum of all shares in a fixed order; or a block of ``summed``."""
    program = tl.program_id(0)
    for i in tl.static_range(LAYERS):
        target = targets[i]
        if (program >= target.first_program) & (program < target.first_program + target.programs):
            place = (program - target.first_program) * BLOCK + tl.arange(0, BLOCK)
            total = tl.zeros((BLOCK,), tl.float32)
            for split in tl.static_range(SPLITS):
                own = partial + target.first_sum + split * sums
                total += tl.load(own + place, mask=place < target.all, other=0.0)
            total = total.to(target.weight.dtype.element_ty)
            tl.store(target.weight + place, total, mask=place < target.weights)
            if target.bias is not None:
                behind = (place >= target.weights) & (place < target.all)
                tl.store(target.bias + place - target.weights, total, mask=behind)
    if summed is not None:  # noqa: SIM102 - evaluated at compile time
        if program >= decoded(summed.first_program):
            columns = (program - decoded(summed.first_program)) * 128 + tl.arange(0, 128)
            width, rows = decoded(summed.width), tl.arange(0, 32)
            total = tl.zeros((128,), tl.float32)
            while tl.min(rows, 0) < decoded(summed.height):
                at = summed.rows + rows.to(tl.int64)[:, None] * width + columns[None, :]
                inside = (rows < decoded(summed.height))[:, None] & (columns < width)[None, :]
                total += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float32), 0)
                rows += 32
            tl.store(summed.total + columns, total.to(summed.total.dtype.element_ty), mask=columns < width)
