"""The measured peaks of the device: a copy in its memory, and products of large matrices."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import precision
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.record import Record
from benchmarks.gpu.stage import Stage, Unit

SUITE = "ceilings"
COPY, IEEE, TF32 = "copy", "fp32 matrix product", "tf32 matrix product"


class Ceilings(NamedTuple):
    """Bytes and operations a second, where they have been measured."""

    bytes_per_second: float | None = None
    flops_per_second: float | None = None

    def share(self, nbytes: int, flops: int, ms: float) -> dict[str, Any]:
        """The work of a row, the least time it could take, and that time over the one it took."""
        told: dict[str, Any] = {"bytes": nbytes, "flops": flops, "floor_ms": None, "share": None}
        if self.bytes_per_second and self.flops_per_second:
            floor = 1e3 * max(nbytes / self.bytes_per_second, flops / self.flops_per_second)
            told |= {"floor_ms": floor, "share": floor / ms if ms > 0 else None}
        return told


def measured(record: Record) -> Ceilings:
    """Those that the run has measured so far."""
    rows = [row for row in record.found("cases") if row["suite"] == SUITE]
    rates = {row["case"]: row["extra"]["per_second"] for row in rows}
    return Ceilings(rates.get(COPY), rates.get(IEEE))


def units(stage: Stage) -> Iterator[Unit]:
    """A ceiling is a unit."""
    yield Unit(COPY, lambda: copy(stage))
    yield Unit(IEEE, lambda: product(stage, IEEE, precision.IEEE))
    yield Unit(TF32, lambda: product(stage, TF32, precision.TF32))


def copy(stage: Stage) -> None:
    """Bytes read and written; far more than a cache holds."""
    count = 1 << (16 if stage.quick else 28)
    source = torch.randn(count, device=stage.device)
    target = torch.empty_like(source)
    _write(stage, COPY, lambda: target.copy_(source), 2 * 4 * count, "bytes", f"{4 * count} bytes")


def product(stage: Stage, name: str, computed_in: str) -> None:
    """Operations of a large product of random matrices; a multiply-add is two."""
    size = 128 if stage.quick else 8192
    a, b = (torch.randn(size, size, device=stage.device) for _ in range(2))
    with precision.multiplied_in(computed_in):
        _write(stage, name, lambda: torch.mm(a, b), 2 * size**3, "operations", f"{size} cubed")


def _write(stage: Stage, name: str, step: Callable[[], object], work: int, of: str, size: str) -> None:
    samples = time_calls(step, stage.device, seconds=0.1 if stage.quick else 1.0)
    rate = 1e3 * work / samples.median
    stage.record.case(SUITE, name, "torch", samples.as_dict(), per_second=rate, of=of, size=size)
