"""Every op of every backend at the tutorial's sizes against float64, beside eager float32."""

from collections.abc import Iterator
from functools import partial

from benchmarks import errors
from benchmarks.draws import Sizes
from benchmarks.gpu.calls import every_op, runnable
from benchmarks.gpu.stage import Stage, Unit


def units(stage: Stage) -> Iterator[Unit]:
    """An op of a backend is a unit."""
    sizes = errors.QUICK if stage.quick else Sizes()
    stage.record.detail(about=errors.about(sizes))
    for op in every_op():
        for name in runnable(op, stage.device, stage.record):
            if name != "reference":
                yield Unit(f"{op}, {name}", partial(hold, stage, op, name, sizes))


def hold(stage: Stage, op: str, name: str, sizes: Sizes) -> None:
    """Write a row for each value and gradient."""
    for row in errors.op_rows(op, name, stage.device, sizes):
        stage.record.correctness(row.as_dict())
