"""Parts of the rowwise kernels: the steps that a program takes, loads and stores of rows, sums over time.

A program takes a block of *places*: steps (p, b, t), of which only the valid ones have a number, counted
row after row. So short sequences leave no gaps, and which step a number means is found on the device: the
host never reads ``lengths``, launches as many programs as full rows would need, and those past the last
valid step return at once.

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

# Sizes that differ from batch to batch: no kernel is compiled anew for them. Those within tuples are encoded.
VARYING = ("first", "count")

# Lengths that a search for the place of a number reads at a time.
SEARCHED = tl.constexpr(64)


_Fields = TypeVar("_Fields", bound=tuple[Any, ...])

rowwise_kernel = triton.jit(do_not_specialize=VARYING)


def encoded(number: int) -> int:
    """A size or stride as a kernel takes it within a tuple: an odd number, and at least 3.

    Triton compiles a kernel anew where an integer is 1 or a multiple of 16 and was not before, and
    ``do_not_specialize`` does not reach the members of a tuple (triton 3.6 to 3.9).
    """
    return 2 * number + 3


@triton.jit
def decoded(number):  # type: ignore[no-untyped-def]
    """The number that :func:`encoded` was given."""
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
    """A ``[P, B, T, width]`` tensor with dense features, as a kernel takes it: its strides are encoded."""

    ptr: Any
    stride_p: int
    stride_b: int
    stride_t: int


class Steps(NamedTuple):
    """The number of steps, and which of them are valid: all where ``lengths`` is None.

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
    """``tensor`` itself where its features are dense, else a copy."""
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
    """A number of elements that every row of them begins at multiples of: those of 16 bytes, or one."""
    given = [rows for rows in tensors if rows is not None]
    unit = 16 // given[0].ptr.element_size()
    aligned = all(rows.ptr.data_ptr() % 16 == 0 for rows in given)
    return unit if aligned and all((s - 3) // 2 % unit == 0 for rows in given for s in rows[1:]) else 1


def entries_of(tensor: Tensor | None) -> Entries | None:
    """A tensor ``[B, T]`` or ``[B, T, width]`` for a kernel."""
    return None if tensor is None else Entries(tensor, *map(encoded, (*tensor.stride(), 0)[:3]))


def constants(fields: _Fields) -> _Fields:
    """The same named tuple with each field a constant of the kernel that takes it.

    A field that bounds a ``range`` is used as it is, or assigned together with others: of one that is
    assigned alone the interpreter makes a tensor, which that of triton 3.6 cannot count to with numpy 2.4.
    """
    made: _Fields = _constants(fields)
    return made


# A launch asks for the same ones again and again. Typed: named tuples of other kinds may be equal.
@lru_cache(maxsize=1024, typed=True)
def _constants(fields: Any) -> Any:
    return type(fields)(*(tl.constexpr(field) for field in fields))


def width_block(size: int, most: int) -> int:
    """The block for so many features: a power of two that ``tl.dot`` takes."""
    return min(max(next_power_of_2(size), 16), most)


def launch(kernel: Any, count: int, on: Tensor, *args: Any, first: int = 0, **options: Any) -> None:
    """Run ``kernel(*args, first, ...)``, a program for each block of ``count`` places from ``first`` on.

    A kernel reads nothing that it writes but its own scratch, so that it may run again to be measured.
    """
    if count == 0:
        return

    def run(config: tuning.Config) -> None:
        kernel[(cdiv(count, config.BLOCK_M),)](*args, first, **config._asdict(), **options)

    with on_device_of(on):
        key = kernel.fn, repr(options), on.dtype, on.device
        run(tuning.choose(run, tuning.CANDIDATES, tuning.by_rule(count), key, on))


def launch_wide(kernel: Any, like: Tensor, *args: Any) -> None:
    """Run a kernel over all steps of ``like [P, B, T, D]``, which takes its features in blocks."""
    width = like.shape[-1]
    wide = constants(Wide(width, width_block(width, 128)))
    launch(kernel, math.prod(like.shape[:3]), like, *args, wide=wide)


@triton.jit
def block_of_places(first, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers of the places of this program, the first program's beginning with ``first``."""
    return first + tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def places(steps, index):  # type: ignore[no-untyped-def]
    """``row, step, valid`` of the valid steps with consecutive numbers; ``row`` is p * batch + b."""
    index = index.to(tl.int64)
    if steps.lengths is None:
        row, step = index // decoded(steps.steps), index % decoded(steps.steps)
        valid = row < decoded(steps.batch) * decoded(steps.particles)
    else:
        row, step, valid = valid_places(steps, index)
    return row, step, valid


@triton.jit
def valid_places(steps, index):  # type: ignore[no-untyped-def]
    """:func:`places` where there are lengths; the numbers follow one another.

    So all but a few comparisons are of 32 bits. They are summed over the first axis, which a thread has most
    of to itself.
    """
    begin = tl.min(index, 0)
    number = (index - begin).to(tl.int32)
    passed = tl.zeros_like(number)  # rows that end before the number
    start = tl.zeros_like(number)  # where the first that does not begins, if that is after the first number
    earlier = tl.full((), 0, tl.int64)  # where it begins otherwise
    total = tl.full((), 0, tl.int64)
    first = 0
    while first < decoded(steps.batch):
        b = first + tl.arange(0, SEARCHED)
        length = tl.load(steps.lengths + b, mask=b < decoded(steps.batch), other=0)
        # A length that is no length must not lead outside of a tensor.
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
    # Not so many that 64 bits were needed, of which a division is slow: a sequence's steps of all particles.
    offset = (index - tl.where(start > 0, begin + start, earlier)).to(tl.int32)
    particle, step = offset // length.to(tl.int32), offset % length.to(tl.int32)
    return particle.to(tl.int64) * decoded(steps.batch) + b, step.to(tl.int64), valid


@triton.jit
def every_place(steps, index):  # type: ignore[no-untyped-def]
    """``row, step, inside, valid`` of places counted without regard to lengths, for what writes them all."""
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
    """``[rows, columns]``: what is valid, within the width, and observed."""
    return observed(mask, row % decoded(steps.batch), step, columns, WIDTH, valid)


@triton.jit
def observed(mask, b, step, columns, WIDTH, valid):  # type: ignore[no-untyped-def]
    """:func:`kept` of rows whose ``b`` is known."""
    keep = valid[:, None] & (columns < WIDTH)[None, :]
    if mask is not None:
        places = entry_at(mask, b[:, None], step[:, None], columns[None, :].to(tl.int64))
        keep &= tl.load(places, mask=keep, other=0) != 0
    return keep


@triton.jit
def at(rows, steps, row, step, UNIT: tl.constexpr = 1):  # type: ignore[no-untyped-def]
    """Pointers to the first feature of the steps ``row, step`` of a tensor.

    The compiler reads several elements at once where it sees that rows begin at multiples of ``UNIT``.
    """
    start = row_start(row, decoded(steps.batch), decoded(rows.stride_p), decoded(rows.stride_b))
    start += step * decoded(rows.stride_t)
    return rows.ptr + (start // UNIT * UNIT if UNIT > 1 else start)


@triton.jit
def before(rows, start, steps, row, step, UNIT: tl.constexpr = 1):  # type: ignore[no-untyped-def]
    """Pointers to the steps before: at the first step of a row, to its ``start``."""
    earlier = at(rows, steps, row, step - 1, UNIT)
    found = tl.where(step > 0, earlier, at(start, steps, row, tl.zeros_like(step), UNIT))
    # The compiler assumes no alignment of pointers that are selected, and would copy one element at a time.
    return tl.multiple_of(found, UNIT * found.dtype.element_ty.primitive_bitwidth // 8) if UNIT > 1 else found


@triton.jit
def load(pointers, columns, keep):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` in float32; zero for what is not to keep."""
    return tl.load(pointers[:, None] + columns[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def load_row(pointers, columns, WIDTH, valid):  # type: ignore[no-untyped-def]
    """``[rows, columns]`` in float32; zero for what is not valid or beyond the width."""
    return load(pointers, columns, valid[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def store_row(pointers, columns, WIDTH, valid, value):  # type: ignore[no-untyped-def]
    """Write ``value [rows, columns]`` where it is valid and within the width."""
    inside = valid[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointers[:, None] + columns[None, :], value.to(pointers.dtype.element_ty), mask=inside)


@rowwise_kernel
def clear_kernel(out, steps, first, wide, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of steps: zeros in out [P, B, T, D] past the end of each row."""
    index = block_of_places(first, BLOCK_M)
    _, _, inside, valid = every_place(steps, index)
    zeros = tl.zeros((BLOCK_M, wide.N), tl.float32)
    for n in range(0, wide.D, wide.N):
        store_row(out + index * wide.D, n + tl.arange(0, wide.N), wide.D, inside & ~valid, zeros)


def clear_past_ends(out: Tensor, lengths: Tensor) -> Tensor:
    """``out [P, B, T, width]``, contiguous, once there are zeros past the end of each row."""
    launch_wide(clear_kernel, out, out, steps_of(out, lengths))
    return out
