"""Iteration over the valid steps of sequences within a kernel: each lane processes a run of steps.

The *places* of a batch are its valid steps, row after row, plus one for each empty sequence, so that
advancing from one place to the next never skips a sequence. A program's places are divided among its lanes in
runs of consecutive ones: a lane searches for its first place once, and then increments its step or begins the
next sequence.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.rows import SEARCHED, decoded, encoded


class Neighbours(NamedTuple):
    """The row that is paired with a row: that of the step ``shift`` (a constant) later.

    Beyond the ends of its sequence it is row ``p start_p + b start_b`` of the start, with encoded strides.
    """

    shift: Any
    start_p: int
    start_b: int


def neighbours_of(shift: int, start: Tensor | None = None) -> Neighbours:
    """The neighbours at ``shift`` steps, or rows of ``start [P, B, width]``, whose strides are whole rows."""
    p, b = (0, 0) if start is None else (stride // start.shape[2] for stride in start.stride()[:2])
    return Neighbours(tl.constexpr(shift), encoded(p), encoded(b))


class Place(NamedTuple):
    """The current place of each lane: particle, sequence, step, and the sequence's length, possibly zero."""

    p: Any
    b: Any
    t: Any
    length: Any


@triton.jit
def lengths_of(steps, b):  # type: ignore[no-untyped-def]
    """The lengths of the sequences ``b``, clamped to the number of steps; zero past the last sequence."""
    length = tl.load(steps.lengths + b, mask=b < decoded(steps.batch), other=0)
    return tl.minimum(tl.maximum(length, 0), decoded(steps.steps))


@triton.jit
def places_of(steps, b):  # type: ignore[no-untyped-def]
    """The numbers of places of the sequences ``b`` of a particle; zero past the last sequence."""
    length = tl.maximum(lengths_of(steps, b).to(tl.int32), 1)
    return tl.where(b < decoded(steps.batch), length, 0)


@triton.jit
def place_count(steps):  # type: ignore[no-untyped-def]
    """The number of places of a particle."""
    total = tl.full((), 0, tl.int32)
    first = 0
    while first < decoded(steps.batch):
        total += tl.sum(places_of(steps, first + tl.arange(0, SEARCHED)), 0)
        first += SEARCHED
    return total


@triton.jit
def find_places(steps, number, total):  # type: ignore[no-untyped-def]
    """The places with these indices; a particle has ``total`` places."""
    p, number = number // total, number % total
    passed = tl.zeros_like(number)  # sequences that end before
    begin = tl.zeros_like(number)  # where the first that does not begins
    before = tl.full((), 0, tl.int32)
    first = 0
    while first < decoded(steps.batch):
        b = first + tl.arange(0, SEARCHED)
        length = places_of(steps, b)
        ends = (before + tl.cumsum(length, 0))[:, None]
        over = (ends <= number[None, :]) & (length > 0)[:, None]
        passed += tl.sum(over.to(tl.int32), 0)
        begin = tl.maximum(begin, tl.max(tl.where(over, ends, 0), 0))
        before += tl.sum(length, 0)
        first += SEARCHED
    return Place(p, passed, number - begin, lengths_of(steps, passed).to(tl.int32))


@triton.jit
def next_places(place, steps):  # type: ignore[no-untyped-def]
    """The place after each place."""
    ends = place.t + 1 >= place.length
    b = tl.where(ends, place.b + 1, place.b)
    wraps = b >= decoded(steps.batch)
    b = tl.where(wraps, 0, b)
    length = tl.load(steps.lengths + b, mask=ends, other=0)
    length = tl.minimum(tl.maximum(length, 0), decoded(steps.steps)).to(tl.int32)
    return Place(
        tl.where(wraps, place.p + 1, place.p),
        b,
        tl.where(ends, 0, place.t + 1),
        tl.where(ends, length, place.length),
    )


@triton.jit
def rows_of_places(place, steps, neighbours):  # type: ignore[no-untyped-def]
    """The row of each place, and of its neighbour: -1 - i for row i of the start."""
    own = (place.p * decoded(steps.batch) + place.b) * decoded(steps.steps) + place.t
    step = place.t + neighbours.shift
    beyond = (step < 0) | (step >= place.length)
    start = place.p * decoded(neighbours.start_p) + place.b * decoded(neighbours.start_b)
    return own.to(tl.int64), tl.where(beyond, -1 - start, own + neighbours.shift).to(tl.int64)
