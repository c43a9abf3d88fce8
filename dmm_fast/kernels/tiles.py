"""Networks over many rows, a launch a layer: each program has a tile of rows and columns.

So even a few thousand rows give every multiprocessor something to do, and a weight is read once for each
block of rows. What passes from launch to launch is scratch in float32, small enough for a GPU's L2. A kernel
reads nothing that it writes, so that it may run again to be measured.

The first launch finds out which step each place is (:mod:`dmm_fast.kernels.rows`), the others read it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels import tuning
from dmm_fast.kernels.common import cdiv, input_precision, on_device_of
from dmm_fast.kernels.layers import bias, product, relu
from dmm_fast.kernels.rows import Rows, Steps, at, before, load_row, places, rowwise_kernel, store_row


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


def room(weight: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Scratch of so many rows and columns, and the places of the rows."""
    scratch = torch.empty(count, width, dtype=torch.float32, device=weight.device)
    return scratch, torch.empty(count, dtype=torch.int64, device=weight.device)


def constants_of(args: Any) -> Any:
    """What of a kernel's arguments it is compiled for: constants and dtypes."""
    if isinstance(args, tuple):
        return tuple(map(constants_of, args))
    return args.dtype if isinstance(args, Tensor) else getattr(args, "value", None)


def launch_tiles(kernel: Any, found: Tensor, widths: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run ``kernel(*args, found, count, ...)`` over tiles of the rows with the places ``found [count]``.

    Blocks of columns are those of one width after another; without any, a program has whole rows.
    """
    count = len(found)
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
    """``index, place, valid`` of this program's rows; ``place`` is (p * batch + b) * steps + t."""
    index = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = tl.load(found + index, mask=index < count, other=-1)
    return index, place, place >= 0


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
def first_layers_kernel(  # type: ignore[no-untyped-def]
    z,
    z_0,
    steps,
    copy,
    layers,
    first,
    found,
    count,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Layers of the rows of z_{t-1}, or of z_t where ``z_0`` is None, at the places from ``first`` on.

    Which these are goes into ``found``, the rows themselves into ``copy`` unless that is None.
    """
    index = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, step, valid = places(steps, first + index)
    valid &= index < count
    if z_0 is None:
        rows = at(z, steps, row, step)
    else:
        rows = before(z, z_0, steps, row, step)
    if tl.program_id(1) == 0:
        tl.store(found + index, tl.where(valid, row * steps.steps + step, -1), mask=index < count)
        if copy is not None:
            for k in range(0, WIDTH, BLOCK_K):
                ks = k + tl.arange(0, BLOCK_K)
                write(copy, index, valid, ks, load_row(rows, ks, WIDTH, valid))
    begin, w, b, opens, to, stride, N = layer_at(layers, tl.program_id(1), BLOCK_N)
    columns = begin + tl.arange(0, BLOCK_N)
    out = product(rows, valid, WIDTH, w, columns, N, WIDTH, 1, BLOCK_K, PRECISION) + bias(b, columns, N)
    store_row(to + index * stride, columns, N, valid, tl.where(opens, relu(out), out))


def first_layers(
    z: Rows,
    z_0: Rows | None,
    steps: Steps,
    copy: Columns | None,
    layers: list[Layer],
    first: int,
    found: Tensor,
) -> None:
    """Run :func:`first_layers_kernel`."""
    widths = tuple(layer.to.width.value for layer in layers)
    width = layers[0].w.shape[1]
    launch_tiles(first_layers_kernel, found, widths, z, z_0, steps, copy, tuple(layers), first, WIDTH=width)


@rowwise_kernel
def hidden_kernel(  # type: ignore[no-untyped-def]
    source,
    w,
    b,
    to,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``relu(W x + b)`` of rows x of scratch."""
    index, _, valid = rows_of_tile(found, count, BLOCK_M)
    columns = columns_of_tile(BLOCK_N)
    out = layer_of(source, index, valid, w, b, columns, to.width, BLOCK_K, PRECISION)
    write(to, index, valid, columns, relu(out))


def hidden(source: Columns, w: Tensor, b: Tensor, to: Columns, found: Tensor) -> None:
    """Run :func:`hidden_kernel`."""
    launch_tiles(hidden_kernel, found, (to.width.value,), source, w, b, to)


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
