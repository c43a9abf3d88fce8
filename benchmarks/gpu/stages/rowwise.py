"""The rowwise ops at the tutorial's sizes: their times, and how near those are to the ceilings."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.cases import TUTORIAL_BATCH
from benchmarks.errors import QUICK, Sizes
from benchmarks.gpu.calls import SCANS, Call, Function, every_op, runnable
from benchmarks.gpu.clocked import Part, clock_if_right, work_of
from benchmarks.gpu.stage import Stage, Unit

SUITE = "rowwise"
BATCHES = (TUTORIAL_BATCH, 256)


def units(stage: Stage) -> Iterator[Unit]:
    """An op of a backend at one size is a unit."""
    for size in [QUICK] if stage.quick else [replace(Sizes(), B=B) for B in BATCHES]:
        for op in every_op():
            for name in runnable(op, stage.device, stage.record) if op not in SCANS else ():
                yield Unit(f"{op}, B={size.B}, {name}", partial(time_op, stage, op, size, name))


def time_op(stage: Stage, op: str, sizes: Sizes, name: str) -> None:
    """Check it, then time the forward and, where there is a backward, both."""
    call = Call(op, sizes, stage.device)

    def parts(function: Function) -> list[Part]:
        forward = Part("forward", call.forward(function), work_of(call, both=False))
        both = Part("forward and backward", call.both(function), work_of(call, both=True))
        return [forward, both] if call.wanted else [forward]

    clock_if_right(stage, SUITE, call, f"{op}, B={sizes.B}, T={sizes.T}", name, parts)
