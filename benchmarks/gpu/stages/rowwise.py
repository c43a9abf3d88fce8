"""The rowwise ops at the tutorial's sizes: who takes how long, and how near that is to the ceilings."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.errors import QUICK, Sizes
from benchmarks.gpu.agreement import Agreement
from benchmarks.gpu.calls import Call, Function, backends_of, by, every_op, reference_of
from benchmarks.gpu.ceilings import measured
from benchmarks.gpu.clocked import Part, agrees, clock, work_of
from benchmarks.gpu.sizes import BATCHES, SCANS
from benchmarks.gpu.stage import Stage, Unit

SUITE = "rowwise"
COMPILED = "torch.compile of the reference"
COMPILING = 60.0  # seconds, for all kernels of an op


def units(stage: Stage) -> Iterator[Unit]:
    """First the backends, at either size; what has to be compiled comes last, the tutorial's size first."""
    ops = [op for op in every_op() if op not in SCANS]
    sizes = [QUICK] if stage.quick else [replace(Sizes(), B=B) for B in BATCHES]
    for size in sizes:
        for op in ops:
            for name in backends_of(op, stage.device):
                run = partial(time_function, stage, op, size, name, by(name, op))
                yield Unit(f"{op}, B={size.B}, {name}", run, COMPILING)
    for size in sizes:
        for op in ops:
            yield Unit(f"{op}, B={size.B}, {COMPILED}", partial(time_compiled, stage, op, size), COMPILING)


def time_compiled(stage: Stage, op: str, sizes: Sizes) -> None:
    """The reference through inductor, for these shapes alone."""
    torch._dynamo.reset()
    compiled: Function = torch.compile(reference_of(op), dynamic=False)
    time_function(stage, op, sizes, COMPILED, compiled)


def time_function(stage: Stage, op: str, sizes: Sizes, name: str, function: Function) -> None:
    """Check it, then time the forward and, where there is a backward, both."""
    call, ceilings = Call(op, sizes, stage.device), measured(stage.out / "results.json")
    case = f"{op}, B={sizes.B}, T={sizes.T}"
    if name != "reference" and not agrees(stage, Agreement(call, case), name, function):
        stage.record.not_run(case, name, "beyond its bound")
        return
    parts = [Part("forward", call.forward(function), work_of(call, ceilings, both=False))]
    if call.wanted:
        both = work_of(call, ceilings, both=True)
        parts.append(Part("forward and backward", call.both(function), both))
    clock(stage, SUITE, case, name, parts)
