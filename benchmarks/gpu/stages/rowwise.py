"""The rowwise ops at the tutorial's sizes: their times, and the work that bounds them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import TUTORIAL_BATCH
from benchmarks.draws import Sizes
from benchmarks.errors import QUICK
from benchmarks.gpu.calls import SCANS, Call, Function, by, every_op, reference_of, runnable
from benchmarks.gpu.clocked import Part, clock_if_right, work_of
from benchmarks.gpu.stage import Stage, Unit

SUITE = "rowwise"
BATCHES = (TUTORIAL_BATCH, 256)
COMPILED = "torch.compile of the reference"
COMPILING = 60.0  # seconds, for all kernels of an op


def units(stage: Stage) -> Iterator[Unit]:
    """An op of a backend at one size is a unit; what has to be compiled for minutes comes last."""
    ops = [op for op in every_op() if op not in SCANS]
    sizes = [QUICK] if stage.quick else [replace(Sizes(), B=B) for B in BATCHES]
    calls = [
        (size, op, name) for size in sizes for op in ops for name in runnable(op, stage.device, stage.record)
    ]
    for size, op, name in [*calls, *((size, op, COMPILED) for size in sizes for op in ops)]:
        yield Unit(f"{op}, B={size.B}, {name}", partial(time_op, stage, op, size, name), COMPILING)


def time_op(stage: Stage, op: str, sizes: Sizes, name: str) -> None:
    """Check it, then time the forward and, where there is a backward, both."""
    call, function = Call(op, sizes, stage.device), by(name, op)
    if name == COMPILED:
        torch._dynamo.reset()
        function = torch.compile(reference_of(op), dynamic=False)

    def parts(function: Function) -> list[Part]:
        forward = Part("forward", call.forward(function), work_of(call, both=False))
        both = Part("forward and backward", call.both(function), work_of(call, both=True))
        return [forward, both] if call.wanted else [forward]

    clock_if_right(stage, SUITE, call, f"{op}, B={sizes.B}, T={sizes.T}", name, function, parts)
