"""Networks over many rows, a launch a layer: each program has a tile of rows and columns.

So even a few thousand rows give every multiprocessor something to do, and a weight is read once for each
block of rows. What passes from launch to launch is scratch in float32, small enough for a GPU's L2. A kernel
reads nothing that it writes, so that it may run again to be measured.

The first launch finds out which step each place is (:mod:`dmm_fast.kernels.rows`) and gathers the rows of z;
the others read both, so that none of them divides or searches.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels import tuning
from dmm_fast.kernels.common import cdiv, input_precision, on_device_of
from dmm_fast.kernels.layers import bias, product, relu
from dmm_fast.kernels.rows import (
    Rows,
    Steps,
    at,
    before,
    decoded,
    load_row,
    places,
    rowwise_kernel,
    store_row,
)


class Spots(NamedTuple):
    """Rows of a ``[P, B, T, width]`` tensor."""

    p: Any
    b: Any
    t: Any


class Columns(NamedTuple):
    """Some columns of scratch, or of what is as dense: how long its rows are, and how many columns."""

    ptr: Any
    stride: Any
    width: Any


class Layer(NamedTuple):
    """A linear layer, whether a relu follows, and the columns of its result."""

    w: Any
    b: Any
    opens: Any
    to: Columns


class Term(NamedTuple):
    """A gradient by a layer's outputs, and the layer's weight."""

    gradient: Columns
    w: Any


def columns_of(scratch: Tensor, at: slice) -> Columns:
    """These columns of ``scratch [rows, columns]``."""
    return Columns(scratch[:, at], tl.constexpr(scratch.stride(0)), tl.constexpr(at.stop - at.start))


def features_of(tensor: Tensor) -> Columns:
    """All features of a contiguous tensor, whose rows are counted as places are."""
    width = tensor.shape[-1]
    return Columns(tensor, tl.constexpr(width), tl.constexpr(width))


def room(on: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Scratch of so many rows and columns, and room for what :func:`gather` finds out about them.

    These are for each row ``place, p, b, t``; ``place``, (p * batch + b) * steps + t, is -1 for none.
    """
    scratch = torch.empty(count, width, dtype=torch.float32, device=on.device)
    return scratch, torch.empty(4, count, dtype=torch.int64, device=on.device)


def constants_of(args: Any) -> Any:
    """What of a kernel's arguments it is compiled for: constants and dtypes."""
    if isinstance(args, tuple):
        return tuple(map(constants_of, args))
    return args.dtype if isinstance(args, Tensor) else getattr(args, "value", None)


def launch_tiles(kernel: Any, found: Tensor, widths: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run ``kernel(*args, found, count, ...)`` over tiles of the rows of ``found [4, count]``.

    Blocks of columns are those of one width after another; without any, a program has whole rows.
    """
    count = found.shape[1]
    if count == 0:
        return
    options["PRECISION"] = input_precision()
    rule = tuning.tiles_by_rule(count, widths)
    key = kernel.fn, constants_of(args), repr(options), found.device

    def run(tiles: tuning.Tiles) -> None:
        columns = sum(cdiv(width, tiles.BLOCK_N) for width in widths)
        grid = (cdiv(count, tiles.BLOCK_M), max(columns, 1))
        kernel[grid](*args, found, count, **tiles._asdict(), **options)

    with on_device_of(found):
        run(tuning.choose(run, tuning.TILES, rule, key, found))


@triton.jit
def rows_of_tile(found, count, BLOCK_M):  # type: ignore[no-untyped-def]
    """``index, place, valid`` of this program's rows."""
    index = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = tl.load(found + index, mask=index < count, other=-1)
    return index, place, place >= 0


@triton.jit
def spots_of(found, count, index, valid):  # type: ignore[no-untyped-def]
    """Where the rows of scratch belong."""
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
def gradient_at(dout, spots, steps, valid):  # type: ignore[no-untyped-def]
    """``[rows, 1]``: the gradient by the sum over time, from dout [P, B]."""
    row = spots.p * decoded(steps.batch) + spots.b
    return tl.load(dout + row, mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def columns_of_tile(BLOCK_N):  # type: ignore[no-untyped-def]
    """The columns of this program."""
    return tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def read(source, index, valid, columns):  # type: ignore[no-untyped-def]
    """The given columns of rows of scratch."""
    return load_row(source.ptr + index * source.stride, columns, source.width, valid)


@triton.jit
def write(to, index, valid, columns, value):  # type: ignore[no-untyped-def]
    """Write the given columns of rows of scratch."""
    store_row(to.ptr + index * to.stride, columns, to.width, valid, value)


@triton.jit
def layer_of(source, index, valid, w, b, columns, N, BLOCK_K, PRECISION):  # type: ignore[no-untyped-def]
    """The given columns of ``W x + b`` for rows x of scratch."""
    rows = source.ptr + index * source.stride
    K = source.width
    return product(rows, valid, K, w, columns, N, K, 1, BLOCK_K, PRECISION) + bias(b, columns, N)


@rowwise_kernel
def gather_kernel(  # type: ignore[no-untyped-def]
    z,
    z_0,
    steps,
    to,
    first,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows of z_{t-1}, or of z_t where ``z_0`` is None, from place ``first`` on; and what they are."""
    index = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = index < count
    row, step, valid = places(steps, first + index)
    valid &= inside
    tl.store(found + index, tl.where(valid, row * decoded(steps.steps) + step, -1), mask=inside)
    tl.store(found + count + index, row // decoded(steps.batch), mask=valid)
    tl.store(found + 2 * count + index, row % decoded(steps.batch), mask=valid)
    tl.store(found + 3 * count + index, step, mask=valid)
    if z_0 is None:
        rows = at(z, steps, row, step)
    else:
        rows = before(z, z_0, steps, row, step)
    for n in range(0, to.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        write(to, index, valid, columns, load_row(rows, columns, to.width, valid))


def gather(z: Rows, z_0: Rows | None, steps: Steps, to: Columns, first: int, found: Tensor) -> None:
    """Run :func:`gather_kernel`."""
    launch_tiles(gather_kernel, found, (), z, z_0, steps, to, first)


@triton.jit
def layer_at(layers, block, BLOCK_N):  # type: ignore[no-untyped-def]
    """The first of a layer's columns in this block of the columns of all layers, and the layer's own.

    These are ``w, b, opens``, and the pointer, stride and width of where it goes.
    """
    w, b, opens, to = layers[0].w, layers[0].b, layers[0].opens, layers[0].to.ptr
    stride, N = layers[0].to.stride, layers[0].to.width
    begin, end = 0, tl.cdiv(layers[0].to.width, BLOCK_N)
    for later in tl.static_range(1, len(layers)):
        here = block >= end
        w, b = tl.where(here, layers[later].w, w), tl.where(here, layers[later].b, b)
        opens, to = tl.where(here, layers[later].opens, opens), tl.where(here, layers[later].to.ptr, to)
        stride = tl.where(here, layers[later].to.stride, stride)
        N = tl.where(here, layers[later].to.width, N)
        begin, end = tl.where(here, end, begin), end + tl.cdiv(layers[later].to.width, BLOCK_N)
    return (block - begin) * BLOCK_N, w, b, opens, to, stride, N


@rowwise_kernel
def layers_kernel(  # type: ignore[no-untyped-def]
    source,
    layers,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Layers of the same rows of scratch."""
    index, _, valid = rows_of_tile(found, count, BLOCK_M)
    begin, w, b, opens, to, stride, N = layer_at(layers, tl.program_id(1), BLOCK_N)
    columns = begin + tl.arange(0, BLOCK_N)
    out = layer_of(source, index, valid, w, b, columns, N, BLOCK_K, PRECISION)
    store_row(to + index * stride, columns, N, valid, tl.where(opens, relu(out), out))


def forward(source: Columns, layers: list[Layer], found: Tensor) -> None:
    """Run :func:`layers_kernel`."""
    widths = tuple(layer.to.width.value for layer in layers)
    launch_tiles(layers_kernel, found, widths, source, tuple(layers))


@rowwise_kernel
def backward_kernel(  # type: ignore[no-untyped-def]
    terms,
    opened,
    direct,
    to,
    found,
    count,
    BY_PLACE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The gradient by what layers were of: through a relu unless ``opened``, its result, is None.

    ``direct`` is added unless it is None. Rows go to those of ``to``, by place where it is no scratch.
    """
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    columns = columns_of_tile(BLOCK_N)
    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in tl.static_range(len(terms)):
        gradient = terms[i].gradient
        rows = gradient.ptr + index * gradient.stride
        K = to.width
        out += product(rows, valid, gradient.width, terms[i].w, columns, K, 1, K, BLOCK_K, PRECISION)
    if opened is not None:
        out = tl.where(read(opened, index, valid, columns) > 0.0, out, 0.0)
    if direct is not None:
        out += read(direct, index, valid, columns)
    write(to, place if BY_PLACE else index, valid, columns, out)


def backward(
    terms: list[Term],
    to: Columns,
    found: Tensor,
    *,
    opened: Columns | None = None,
    direct: Columns | None = None,
    by_place: bool = False,
) -> None:
    """Run :func:`backward_kernel`."""
    widths = (to.width.value,)
    launch_tiles(backward_kernel, found, widths, tuple(terms), opened, direct, to, BY_PLACE=by_place)
