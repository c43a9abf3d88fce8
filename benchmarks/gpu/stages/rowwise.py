"""Times of the rowwise ops at the tutorial's sizes, with their bytes and operations."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import TUTORIAL_BATCH
from benchmarks.draws import Sizes
from benchmarks.errors import QUICK
from benchmarks.gpu.calls import SCANS, Call, Function, by, every_op, reference_of, runnable
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.timed_case import Part, time_if_correct, work_of

SUITE = "rowwise"
BATCHES = (TUTORIAL_BATCH, 256)
COMPILED = "torch.compile of the reference"
COMPILING = 60.0  # seconds, for all kernels of an op


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each op, backend and size; those that torch.compile compiles for minutes come last."""
    ops = [op for op in every_op() if op not in SCANS]
    sizes = [QUICK] if stage.quick else [replace(Sizes(), B=B) for B in BATCHES]
    calls = [
        (size, op, name) for size in sizes for op in ops for name in runnable(op, stage.device, stage.record)
    ]
    for size, op, name in [*calls, *((size, op, COMPILED) for size in sizes for op in ops)]:
        yield Unit(f"{op}, B={size.B}, {name}", partial(time_op, stage, op, size, name), COMPILING)


def time_op(stage: Stage, op: str, sizes: Sizes, name: str) -> None:
    """Check an op, then time its forward pass and, if it is differentiable, forward and backward."""
    call, function = Call(op, sizes, stage.device), by(name, op)
    if name == COMPILED:
        torch._dynamo.reset()
        function = torch.compile(reference_of(op), dynamic=False)

    def parts(function: Function) -> list[Part]:
        forward = Part("forward", call.forward(function), work_of(call, both=False))
        both = Part("forward and backward", call.both(function), work_of(call, both=True))
        return [forward, both] if call.wanted else [forward]

    time_if_correct(stage, SUITE, call, f"{op}, B={sizes.B}, T={sizes.T}", name, function, parts)
