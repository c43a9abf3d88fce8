"""Errors of every op of every backend at the tutorial's sizes, compared with those of eager float32."""

from collections.abc import Iterator
from functools import partial

from benchmarks import errors
from benchmarks.draws import Sizes
from benchmarks.gpu.calls import every_op, runnable
from benchmarks.gpu.stage import Stage, Unit


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each op of each backend."""
    sizes = errors.QUICK if stage.quick else Sizes()
    stage.record.detail(about=errors.about(sizes))
    for op in every_op():
        for name in runnable(op, stage.device, stage.record):
            if name != "reference":
                yield Unit(f"{op}, {name}", partial(record_errors, stage, op, name, sizes))


def record_errors(stage: Stage, op: str, name: str, sizes: Sizes) -> None:
    """Record the error of each value and gradient."""
    for row in errors.op_rows(op, name, stage.device, sizes):
        stage.record.correctness(row.as_dict())
