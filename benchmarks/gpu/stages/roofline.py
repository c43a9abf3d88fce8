"""Roofline: measured peak rates of the device, of a copy in its memory and of large matrix products."""

from collections.abc import Callable, Iterator

import torch

from benchmarks import precision
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.report.rowwise import COPY, PRODUCT

SUITE = "roofline"
TF32 = "tf32 matrix product"


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each rate."""
    yield Unit(COPY, lambda: copy(stage))
    yield Unit(PRODUCT, lambda: product(stage, PRODUCT, precision.IEEE))
    yield Unit(TF32, lambda: product(stage, TF32, precision.TF32))


def copy(stage: Stage) -> None:
    """Measure bytes read and written per second, for far more bytes than a cache holds."""
    count = 1 << (16 if stage.quick else 28)
    source = torch.randn(count, device=stage.device)
    target = torch.empty_like(source)
    measure(stage, COPY, lambda: target.copy_(source), 2 * 4 * count, "bytes", f"{4 * count} bytes")


def product(stage: Stage, name: str, computed_in: str) -> None:
    """Measure operations per second of a large product of random matrices; a multiply-add counts as two."""
    size = 128 if stage.quick else 8192
    a, b = (torch.randn(size, size, device=stage.device) for _ in range(2))
    with precision.multiplied_in(computed_in):
        measure(stage, name, lambda: torch.mm(a, b), 2 * size**3, "operations", f"{size} cubed")


def measure(stage: Stage, name: str, step: Callable[[], object], work: int, of: str, size: str) -> None:
    """Record the rate of a function."""
    samples = time_calls(step, stage.device, seconds=0.1 if stage.quick else 1.0)
    rate = 1e3 * work / samples.median
    stage.record.case(SUITE, name, "torch", samples.as_dict(), per_second=rate, of=of, size=size)
