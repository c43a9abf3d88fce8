"""Parts of the rowwise kernels: the steps of a program, loads and stores of rows, launches.

A program processes a block of *places*: steps (p, b, t), where only valid steps are numbered, row after row.
So short sequences leave no gaps. The step of a place is found on the device: the host never reads
``lengths`` and launches as many programs as full rows would need; those past the last valid step return
immediately.

Features are dense (:func:`dense`), all other strides are arguments.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tuning
from dmm_fast.triton.common import cdiv, next_power_of_2, on_device_of, row_start

# Sizes that differ between batches, for which kernels are not recompiled. Those within tuples are encoded.
VARYING = ("first", "count")

# Number of lengths read at a time in the search for the step of a place.
SEARCHED = tl.constexpr(64)


_Fields = TypeVar("_Fields", bound=tuple[Any, ...])

rowwise_kernel = triton.jit(do_not_specialize=VARYING)


def encoded(number: int) -> int:
    """A size or stride in the form for a kernel's tuple arguments: an odd number, at least 3.

    Triton compiles a kernel anew where an integer is 1 or a multiple of 16 and was not before, and
    ``do_not_specialize`` does not reach the members of a tuple (triton 3.6 to 3.9).
    """
    return 2 * number + 3


@triton.jit
def decoded(number):  # type: ignore[no-untyped-def]
    """Inverse of :func:`encoded`."""
    return (number - 3) >> 1


class Blocks(NamedTuple):
    """Block sizes of a layer (rows, outputs, inputs) and the precision of its products."""

    M: Any
    N: Any
    K: Any
    precision: Any


class Wide(NamedTuple):
    """The number D of features of a step, and the block size N."""

    D: Any
    N: Any


class Rows(NamedTuple):
    """A ``[P, B, T, width]`` tensor with dense features as an argument of kernels, with encoded strides."""

    ptr: Any
    stride_p: int
    stride_b: int
    stride_t: int


class Steps(NamedTuple):
    """The numbers of particles, rows and steps, and the lengths; all steps are valid if ``lengths`` is None.

    The three sizes are encoded.
    """

    lengths: Any
    particles: int
    batch: int
    steps: int


class Entries(NamedTuple):
    """A tensor ``[B, T]`` (no feature stride) or ``[B, T, width]``, such as a mask; strides are encoded."""

    ptr: Any
    stride_b: int
    stride_t: int
    stride_d: int


def dense(tensor: Tensor) -> Tensor:
    """``tensor`` itself if its features are dense, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def rows_of(tensor: Tensor) -> Rows:
    """``tensor [P, B, T, width]``, or a start ``[P, B, width]`` or ``[1, 1, width]``, for a kernel."""
    held = dense(tensor)
    strides = [stride if size > 1 else 0 for size, stride in zip(held.shape, held.stride(), strict=True)][:-1]
    return Rows(held, *map(encoded, (*strides, *(3 - len(strides)) * (0,))))


def steps_of(tensor: Tensor, lengths: Tensor | None) -> Steps:
    """The steps of a ``[P, B, T, ...]`` tensor."""
    return Steps(None if lengths is None else lengths.contiguous(), *map(encoded, tensor.shape[:3]))


def unit_of(*tensors: Rows | None) -> int:
    """An alignment of all rows of these tensors in elements: those of 16 bytes, or one."""
    given = [rows for rows in tensors if rows is not None]
    unit = 16 // given[0].ptr.element_size()
    aligned = all(rows.ptr.data_ptr() % 16 == 0 for rows in given)
    return unit if aligned and all((s - 3) // 2 % unit == 0 for rows in given for s in rows[1:]) else 1


def entries_of(tensor: Tensor | None) -> Entries | None:
    """A tensor ``[B, T]`` or ``[B, T, width]`` for a kernel."""
    return None if tensor is None else Entries(tensor, *map(encoded, (*tensor.stride(), 0)[:3]))


def constants(fields: _Fields) -> _Fields:
    """The same named tuple with each field a constexpr of the kernel.

    In a kernel, use a field that bounds a ``range`` directly, or assign it together with others: a single
    assignment makes a tensor in the interpreter, and Triton 3.6 with numpy 2.4 cannot use that in a range.
    """
    made: _Fields = _constants(fields)
    return made


# Cached since launches reuse the same constants. Typed, since named tuples of different types may be equal.
@lru_cache(maxsize=1024, typed=True)
def _constants(fields: Any) -> Any:
    return type(fields)(*(tl.constexpr(field) for field in fields))


def width_block(size: int, most: int) -> int:
    """The block size for ``size`` features: a power of two that is valid for ``tl.dot``."""
    return min(max(next_power_of_2(size), 16), most)


def launch(kernel: Any, count: int, on: Tensor, *args: Any, first: int = 0, **options: Any) -> None:
    """Run ``kernel(*args, first, ...)`` with a program for each block of ``count`` places from ``first`` on.

    Apart from scratch, a kernel must not read what it writes, so that it can be run repeatedly for tuning.
    """
    if count == 0:
        return

    def run(config: tuning.Config) -> None:
        kernel[(cdiv(count, config.BLOCK_M),)](*args, first, **config._asdict(), **options)

    with on_device_of(on):
        key = kernel.fn, repr(options), on.dtype, on.device
        run(tuning.choose(run, tuning.CANDIDATES, tuning.by_rule(count), key, on))


def launch_wide(kernel: Any, like: Tensor, *args: Any) -> None:
    """Run a kernel over all steps of ``like [P, B, T, D]``, with features in blocks."""
    width = like.shape[-1]
    wide = constants(Wide(width, width_block(width, 128)))
    launch(kernel, math.prod(like.shape[:3]), like, *args, wide=wide)


@triton.jit
def block_of_places(first, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The indices of this program's places; those of the first program begin with ``first``."""
    return first + tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def places(steps, index):  # type: ignore[no-untyped-def]
    """``row, step, valid`` of the places with consecutive indices; ``row`` is p * batch + b."""
    index = index.to(tl.int64)
    if steps.lengths is None:
        row, step = index // decoded(steps.steps), index % decoded(steps.steps)
        valid = row < decoded(steps.batch) * decoded(steps.particles)
    else:
        row, step, valid = valid_places(steps, index)
    return row, step, valid


@triton.jit
def valid_places(steps, index):  # type: ignore[no-untyped-def]
    """:func:`places` with lengths, for consecutive indices.

    Since they are consecutive, all but a few comparisons are of 32 bits. They are summed over the first axis,
    most of which is within a thread.
    """
    begin = tl.min(index, 0)
    number = (index - begin).to(tl.int32)
    passed = tl.zeros_like(number)  # the number of rows that end before a place
    start = tl.zeros_like(number)  # the start of the place's row, if it is after the first place
    earlier = tl.full((), 0, tl.int64)  # its start otherwise
    total = tl.full((), 0, tl.int64)
    first = 0
    while first < decoded(steps.batch):
        b = first + tl.arange(0, SEARCHED)
        length = tl.load(steps.lengths + b, mask=b < decoded(steps.batch), other=0)
        # An invalid length must not cause an access outside of a tensor.
        length = tl.minimum(tl.maximum(length, 0), decoded(steps.steps)) * decoded(steps.particles)
        ends = total + tl.cumsum(length, 0)
        total += tl.sum(length, 0)
        earlier = tl.maximum(earlier, tl.max(tl.where(ends <= begin, ends, 0), 0))
        ends = tl.minimum(tl.maximum(ends - begin, 0), index.shape[0])
        ends = tl.where(b < decoded(steps.batch), ends, index.shape[0]).to(tl.int32)[:, None]
        over = ends <= number[None, :]
        passed += tl.sum(over.to(tl.int32), 0)
        start = tl.maximum(start, tl.max(tl.where(over, ends, 0), 0))
        first += SEARCHED
    valid = index < total
    b = tl.where(valid, passed, 0).to(tl.int64)
    length = tl.load(steps.lengths + b, mask=valid, other=1)
    length = tl.minimum(tl.maximum(length, 1), decoded(steps.steps))
    # The offset within a sequence's steps of all particles fits in 32 bits, whose division is fast.
    offset = (index - tl.where(start > 0, begin + start, earlier)).to(tl.int32)
    particle, step = offset // length.to(tl.int32), offset % length.to(tl.int32)
    return particle.to(tl.int64) * decoded(steps.batch) + b, step.to(tl.int64), valid


@triton.jit
def every_place(steps, index):  # type: ignore[no-untyped-def]
    """``row, step, inside, valid`` of all steps, valid or not, for kernels that write all of them."""
    index = index.to(tl.int64)
    row, step = index // decoded(steps.steps), index % decoded(steps.steps)
    inside = row < decoded(steps.batch) * decoded(steps.particles)
    return row, step, inside, step < tl.load(steps.lengths + row % decoded(steps.batch), mask=inside, other=0)


@triton.jit
def entry_at(entries, b, t, d):  # type: ignore[no-untyped-def]
    """Pointers to entries of a tensor."""
    row = entries.ptr + b * decoded(entries.stride_b) + t * decoded(entries.stride_t)
    return row + d * decoded(entries.stride_d)


@triton.jit
def kept(mask, steps, row, step, columns, WIDTH, valid):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` bool: True at entries that are valid, within the width, and observed."""
    return observed(mask, row % decoded(steps.batch), step, columns, WIDTH, valid)


@triton.jit
def observed(mask, b, step, columns, WIDTH, valid):  # type: ignore[no-untyped-def]
    """:func:`kept` for rows with known ``b``."""
    keep = valid[:, None] & (columns < WIDTH)[None, :]
    if mask is not None:
        places = entry_at(mask, b[:, None], step[:, None], columns[None, :].to(tl.int64))
        keep &= tl.load(places, mask=keep, other=0) != 0
    return keep


@triton.jit
def at(rows, steps, row, step, UNIT: tl.constexpr = 1):  # type: ignore[no-untyped-def]
    """Pointers to the first feature of the steps ``row, step`` of a tensor.

    The compiler uses vector loads if it knows that rows begin at multiples of ``UNIT``.
    """
    start = row_start(row, decoded(steps.batch), decoded(rows.stride_p), decoded(rows.stride_b))
    start += step * decoded(rows.stride_t)
    return rows.ptr + (start // UNIT * UNIT if UNIT > 1 else start)


@triton.jit
def before(rows, start, steps, row, step, UNIT: tl.constexpr = 1):  # type: ignore[no-untyped-def]
    """Pointers to the preceding steps; at the first step of a row, to its ``start``."""
    earlier = at(rows, steps, row, step - 1, UNIT)
    found = tl.where(step > 0, earlier, at(start, steps, row, tl.zeros_like(step), UNIT))
    # The compiler assumes no alignment of selected pointers and would load one element at a time.
    return tl.multiple_of(found, UNIT * found.dtype.element_ty.primitive_bitwidth // 8) if UNIT > 1 else found


@triton.jit
def load(pointers, columns, keep):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` in float32; zero where ``keep`` is False."""
    return tl.load(pointers[:, None] + columns[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def load_row(pointers, columns, WIDTH, valid):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` in float32; zero at invalid rows and beyond the width."""
    return load(pointers, columns, valid[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def store_row(pointers, columns, WIDTH, valid, value):  # type: ignore[no-untyped-def]
    """Write ``value [rows, columns]`` at valid rows and within the width."""
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointers[:, None] + columns[None, :], value.to(pointers.dtype.element_ty), mask=inside)


@rowwise_kernel
def clear_kernel(out, steps, first, wide, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of steps: write zeros to out [P, B, T, D] past the end of each row."""
    index = block_of_places(first, BLOCK_M)
    _, _, inside, valid = every_place(steps, index)
    zeros = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        store_row(out + index * wide.D, n + tl.arange(0, wide.N), wide.D, inside & ~valid, zeros)


def clear_past_ends(out: Tensor, lengths: Tensor) -> Tensor:
    """Fill ``out [P, B, T, width]``, contiguous, with zeros past the end of each row, and return it."""
    launch_wide(clear_kernel, out, out, steps_of(out, lengths))
    return out
