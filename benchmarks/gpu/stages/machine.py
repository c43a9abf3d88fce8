"""Where and with what: the results' ``meta``."""

from collections.abc import Iterator

import torch

from benchmarks import machine
from benchmarks.gpu.stage import Stage, Unit


def units(stage: Stage) -> Iterator[Unit]:
    """What was run where, and the clocks before anything has run."""
    yield Unit("meta", lambda: stage.record.add("meta", meta(stage)))
    yield Unit("clocks", lambda: stage.record.detail(clocks=machine.clocks()))
    if stage.device == "cuda":
        yield Unit("properties", lambda: stage.record.detail(properties=properties()))


def meta(stage: Stage) -> dict[str, object]:
    """As every suite has it; the commit as it was told where git knows none."""
    known = machine.meta(torch.device(stage.device), quick=stage.quick)
    return known | ({"commit": stage.commit} if stage.commit else {})


def properties() -> dict[str, object]:
    """What torch knows of the GPU."""
    found = torch.cuda.get_device_properties(0)
    names = ("name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size")
    return {name: getattr(found, name, None) for name in names}
