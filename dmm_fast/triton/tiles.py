"""Networks over many rows, a few layers per launch: each program has a tile of rows and columns.

Thus even a few thousand rows occupy every multiprocessor, and a weight is read once for each block of rows.
Launches pass data through scratch in float32, small enough for a GPU's L2 cache. A program reads nothing that
other programs of its launch write, and its results do not depend on previous contents, so that a kernel can
be run repeatedly for tuning.

The first launch determines the step of each place (:mod:`dmm_fast.triton.rows`) and reads the rows of z; the
others read its results, so that they need no division or search.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tuning
from dmm_fast.triton.common import cdiv, input_precision, on_device_of
from dmm_fast.triton.layers import bias, linear, linear_backward, product, relu
from dmm_fast.triton.rows import (
    Blocks,
    Rows,
    Steps,
    at,
    before,
    constants,
    decoded,
    entry_at,
    every_place,
    load_row,
    places,
    rowwise_kernel,
    store_row,
    unit_of,
)


class Spots(NamedTuple):
    """Rows of a ``[P, B, T, width]`` tensor."""

    p: Any
    b: Any
    t: Any


class Columns(NamedTuple):
    """Columns of scratch, or of another dense matrix: pointer, row stride and number of columns."""

    ptr: Any
    stride: Any
    width: Any


class Layer(NamedTuple):
    """A linear layer, a flag for a following ReLU, and the columns of its result."""

    w: Any
    b: Any
    has_relu: Any
    to: Columns


class Term(NamedTuple):
    """The gradient of a layer's outputs, and the layer's weight."""

    gradient: Columns
    w: Any


class Gradient(NamedTuple):
    """The gradient of the common input of layers; ``relu_outputs`` is that input if it is a ReLU's output.

    The latter is a tuple of one element or none, since kernels accept no None this deep in tuples
    (Triton 3.6).
    """

    terms: tuple[Term, ...]
    to: Columns
    relu_outputs: tuple[Columns, ...] = ()


def columns_of(scratch: Tensor, at: slice) -> Columns:
    """These columns of ``scratch [rows, columns]``."""
    return Columns(scratch[:, at], tl.constexpr(scratch.stride(0)), tl.constexpr(at.stop - at.start))


def features_of(tensor: Tensor) -> Columns:
    """All features of a contiguous tensor, whose rows are indexed like places."""
    width = tensor.shape[-1]
    return Columns(tensor, tl.constexpr(width), tl.constexpr(width))


def room(on: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Allocate scratch of ``count`` rows, and the table of their places for :func:`first_layers`.

    The table has ``place, p, b, t`` for each row; ``place``, (p * batch + b) * steps + t, is -1 for none.
    """
    scratch = torch.empty(count, width, dtype=torch.float32, device=on.device)
    return scratch, torch.empty(4, count, dtype=torch.int64, device=on.device)


def constants_of(args: Any) -> Any:
    """The part of a kernel's arguments on which its compilation depends: constants and dtypes."""
    if isinstance(args, tuple):
        return tuple(map(constants_of, args))
    return args.dtype if isinstance(args, Tensor) else getattr(args, "value", None)


def launch_tiles(kernel: Any, found: Tensor, widths: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run ``kernel(*args, found, count, blocks, ...)`` over tiles of the rows of ``found [4, count]``."""
    launch_rows(kernel, found.shape[1], found, widths, *args, found, **options)


def launch_rows(
    kernel: Any, count: int, on: Tensor, widths: tuple[int, ...], *args: Any, **options: Any
) -> None:
    """Run ``kernel(*args, count, blocks, ...)`` over tiles of ``count`` rows, on the device of ``on``.

    The blocks of columns are those of all ``widths``; without widths, programs have whole rows and at least
    ``least_warps`` warps.
    """
    if count == 0:
        return
    rule = tuning.tiles_by_rule(count, widths, options.pop("least_warps", 1))
    precision = input_precision()
    key = kernel.fn, constants_of(args), precision, repr(options), on.device

    def run(tiles: tuning.Tiles) -> None:
        columns = sum(cdiv(width, tiles.BLOCK_N) for width in widths)
        grid = (cdiv(count, tiles.BLOCK_M), max(columns, 1))
        blocks, (num_warps, num_stages) = constants(Blocks(*tiles[:3], precision)), tiles[3:]
        kernel[grid](*args, count, blocks, num_warps=num_warps, num_stages=num_stages, **options)

    with on_device_of(on):
        run(tuning.choose(run, tuning.TILES, rule, key, on))


@triton.jit
def rows_of_tile(found, count, blocks):  # type: ignore[no-untyped-def]
    """``index, place, valid`` of this program's rows."""
    index = tl.program_id(0).to(tl.int64) * blocks.M + tl.arange(0, blocks.M)
    place = tl.load(found + index, mask=index < count, other=-1)
    return index, place, place >= 0


@triton.jit
def spots_of(found, count, index, valid):  # type: ignore[no-untyped-def]
    """The places of rows of scratch."""
    return Spots(
        tl.load(found + count + index, mask=valid, other=0),
        tl.load(found + 2 * count + index, mask=valid, other=0),
        tl.load(found + 3 * count + index, mask=valid, other=0),
    )


@triton.jit
def row_at(rows, spots):  # type: ignore[no-untyped-def]
    """Pointers to the first feature of rows of a tensor."""
    start = spots.p * decoded(rows.stride_p) + spots.b * decoded(rows.stride_b)
    return rows.ptr + start + spots.t * decoded(rows.stride_t)


@triton.jit
def gradient_at(dout, spots, valid):  # type: ignore[no-untyped-def]
    """``[rows, 1]``: the gradient of the sum over time, read from dout [P, B]."""
    return tl.load(entry_at(dout, spots.p, spots.b, 0), mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def read(source, index, valid, columns):  # type: ignore[no-untyped-def]
    """The given columns of rows of scratch."""
    return load_row(source.ptr + index * source.stride, columns, source.width, valid)


@triton.jit
def write(to, index, valid, columns, value):  # type: ignore[no-untyped-def]
    """Write the given columns of rows of scratch."""
    store_row(to.ptr + index * to.stride, columns, to.width, valid, value)


@triton.jit
def layer_of(source, index, valid, w, b, columns, N, blocks):  # type: ignore[no-untyped-def]
    """The given columns of ``W x + b`` for rows x of scratch."""
    return linear(source.ptr + index * source.stride, valid, source.width, w, b, columns, N, blocks)


@triton.jit
def layer_at(layers, block, blocks):  # type: ignore[no-untyped-def]
    """The first column and the layer of a block in the columns of all layers.

    The layer is given by ``w, b, has_relu``, and the pointer, stride and width of its result.
    """
    w, b, has_relu, to = layers[0].w, layers[0].b, layers[0].has_relu, layers[0].to.ptr
    stride, N = layers[0].to.stride, layers[0].to.width
    begin, end = 0, tl.cdiv(layers[0].to.width, blocks.N)
    for later in tl.static_range(1, len(layers)):
        here = block >= end
        w, b = tl.where(here, layers[later].w, w), tl.where(here, layers[later].b, b)
        has_relu = tl.where(here, layers[later].has_relu, has_relu)
        to = tl.where(here, layers[later].to.ptr, to)
        stride = tl.where(here, layers[later].to.stride, stride)
        N = tl.where(here, layers[later].to.width, N)
        begin, end = tl.where(here, end, begin), end + tl.cdiv(layers[later].to.width, blocks.N)
    return (block - begin) * blocks.N, w, b, has_relu, to, stride, N


@triton.jit
def layer_tile(rows, valid, K, layers, scale, blocks):  # type: ignore[no-untyped-def]
    """This program's columns of all layers for ``scale`` times rows of K features, and their destination.

    The destination is given by the columns within their layer, and the layer's pointer, stride and width.
    """
    begin, w, b, has_relu, to, stride, N = layer_at(layers, tl.program_id(1), blocks)
    columns = begin + tl.arange(0, blocks.N)
    out = scale * product(rows, valid, K, w, columns, N, K, 1, blocks) + bias(b, columns, N)
    return tl.where(has_relu, relu(out), out), columns, to, stride, N


@triton.jit
def rows_of_steps(x, start, steps, row, step, UNIT):  # type: ignore[no-untyped-def]
    """Pointers to the steps of x, or to the preceding steps if ``start`` is given."""
    return at(x, steps, row, step, UNIT) if start is None else before(x, start, steps, row, step, UNIT)


@triton.jit
def clear_past_ends(to, steps, place, inside, blocks):  # type: ignore[no-untyped-def]
    """Write zeros to the rows past the ends of sequences, for a block of all steps."""
    _, _, _, valid = every_place(steps, place)
    zeros = tl.zeros((blocks.M, blocks.N), tl.float32)
    for n in range(0, to.width, blocks.N):
        write(to, place, inside & ~valid, n + tl.arange(0, blocks.N), zeros)


@rowwise_kernel
def first_layers_kernel(  # type: ignore[no-untyped-def]
    z, z_0, steps, layers, z_copy, cleared, first, found, count, blocks, Z: tl.constexpr, UNIT: tl.constexpr
):
    """Layers of z_{t-1}, or of z_t if ``z_0`` is None, from place ``first`` on.

    The programs of the first columns also write the places to ``found``, the rows of z to ``z_copy`` unless
    it is None, and zeros past the ends of the rows of ``cleared``.
    """
    index = tl.program_id(0).to(tl.int64) * blocks.M + tl.arange(0, blocks.M)
    inside = index < count
    row, step, valid = places(steps, first + index)
    valid &= inside
    rows = rows_of_steps(z, z_0, steps, row, step, UNIT)
    if tl.program_id(1) == 0:
        tl.store(found + index, tl.where(valid, row * decoded(steps.steps) + step, -1), mask=inside)
        sequence = row.to(tl.int32)
        tl.store(found + count + index, sequence // decoded(steps.batch), mask=valid)
        tl.store(found + 2 * count + index, sequence % decoded(steps.batch), mask=valid)
        tl.store(found + 3 * count + index, step, mask=valid)
        if z_copy is not None:
            for n in range(0, Z, blocks.N):
                columns = n + tl.arange(0, blocks.N)
                write(z_copy, index, valid, columns, load_row(rows, columns, Z, valid))
        for i in tl.static_range(len(cleared)):
            clear_past_ends(cleared[i], steps, first + index, inside, blocks)
    out, columns, to, stride, N = layer_tile(rows, valid, Z, layers, 1.0, blocks)
    store_row(to + index * stride, columns, N, valid, out)


def first_layers(
    z: Rows,
    z_0: Rows | None,
    steps: Steps,
    layers: list[Layer],
    z_copy: Columns | None,
    first: int,
    found: Tensor,
    cleared: tuple[Columns, ...] = (),
) -> None:
    """Run :func:`first_layers_kernel`; ``cleared`` are whole tensors ``[P, B, T, width]``."""
    given = (z, z_0, steps, tuple(layers), z_copy, cleared, first)
    options = {"Z": z.ptr.shape[-1], "UNIT": unit_of(z, z_0)}
    launch_tiles(first_layers_kernel, found, widths_of(layers), *given, **options)


def widths_of(layers: list[Layer]) -> tuple[int, ...]:
    """The number of outputs of each layer."""
    return tuple(layer.to.width.value for layer in layers)


@triton.jit
def gradient_tile(gradient, index, valid, columns, blocks):  # type: ignore[no-untyped-def]
    """The given columns of a :class:`Gradient`."""
    out = tl.zeros((valid.shape[0], columns.shape[0]), tl.float32)
    K = gradient.to.width
    for i in tl.static_range(len(gradient.terms)):
        of_outputs = gradient.terms[i].gradient
        rows, N = of_outputs.ptr + index * of_outputs.stride, of_outputs.width
        out += linear_backward(rows, valid, N, gradient.terms[i].w, columns, K, blocks)
    for i in tl.static_range(len(gradient.relu_outputs)):
        out = tl.where(read(gradient.relu_outputs[i], index, valid, columns) > 0.0, out, 0.0)
    return out


@triton.jit
def gradients_of_rows(gradients, index, place, valid, blocks):  # type: ignore[no-untyped-def]
    """Whole rows of gradients, each computed from the one before; the last one is written by place."""
    for i in tl.static_range(len(gradients)):
        tl.debug_barrier()
        to = place if i == len(gradients) - 1 else index
        for n in range(0, gradients[i].to.width, blocks.N):
            columns = n + tl.arange(0, blocks.N)
            out = gradient_tile(gradients[i], index, valid, columns, blocks)
            write(gradients[i].to, to, valid, columns, out)


@rowwise_kernel
def backward_kernel(gradients, found, count, blocks, BY_PLACE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of one of the gradients; with ``BY_PLACE`` rows of the result are indexed by place."""
    index, place, valid = rows_of_tile(found, count, blocks)
    block = tl.program_id(1)
    for i in tl.static_range(len(gradients)):
        to = gradients[i].to
        across = tl.cdiv(to.width, blocks.N)
        if (block >= 0) & (block < across):
            columns = block * blocks.N + tl.arange(0, blocks.N)
            out = gradient_tile(gradients[i], index, valid, columns, blocks)
            write(to, place if BY_PLACE else index, valid, columns, out)
        block -= across


def backward(gradients: list[Gradient], found: Tensor, *, by_place: bool = False) -> None:
    """Run :func:`backward_kernel`."""
    widths = tuple(gradient.to.width.value for gradient in gradients)
    launch_tiles(backward_kernel, found, widths, tuple(gradients), BY_PLACE=by_place)
