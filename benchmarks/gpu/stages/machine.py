"""The machine, the versions and the library of a run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.stage import Stage, Unit
from dmm_fast import ops
from dmm_fast.cuda.devices import CLUSTER_SIZES, cuda_device


def units(stage: Stage) -> Iterator[Unit]:
    """Versions, the library, the clocks before anything has run, and facts about the GPU."""
    yield Unit("meta", lambda: stage.record.add("meta", meta(stage)))
    asked: dict[str, Callable[[], object]]
    asked = {"library": partial(library, stage.device), "clocks": machine.clocks}
    if stage.device == "cuda":
        asked["properties"] = lambda: str(torch.cuda.get_device_properties(0))
        asked |= {"stream": stream, "clusters_at_once": clusters}
    for name, ask in asked.items():
        yield Unit(name, partial(tell, stage, name, ask))


def tell(stage: Stage, name: str, ask: Callable[[], object]) -> None:
    """Record and print the answer."""
    found = ask()
    stage.record.detail(**{name: found})
    print(f"  {name}: {found}", flush=True)


def meta(stage: Stage) -> dict[str, object]:
    """The facts that every suite records; the commit as it was given where git knows none."""
    known = machine.meta(torch.device(stage.device), quick=stage.quick)
    return known | ({"commit": stage.commit} if stage.commit else {})


def library(device: str) -> dict[str, object]:
    """The compiled library that was found.

    Raises:
        RuntimeError: it has no kernels for the device.
    """
    found = ops.info()
    if not found["cuda_architectures" if device == "cuda" else "instruction_set"]:
        raise RuntimeError(f"the library: expected kernels for {device}, got none: {found['missing']}")
    return {key: found[key] for key in ("instruction_set", "cuda_architectures", "missing")}


def stream() -> str:
    """Whether a kernel runs on torch's current stream, which the library has to find."""
    param, grad, average, square = (torch.tensor([n], device="cuda") for n in (3.0, 1.0, 0.0, 0.0))
    numbers: dict[str, Any] = {"step": 1, "lr": 1.0, "beta1": 0.0, "beta2": 0.0, "eps": 0.0}
    numbers |= {"weight_decay": 0.0, "clip_norm": 1.0}
    # With no averages kept, the parameter moves by the learning rate against the sign of its gradient.
    with ops.use_backend("cuda"):
        ops.clipped_adam([param], [grad], [average], [square], **numbers)
    return "found" if param.item() == 2.0 else "a kernel on it computed something else"


def clusters() -> dict[str, int]:
    """Count the clusters of each size that run at a time with all the shared memory a block may have."""
    device = cuda_device(torch.cuda.current_device())
    return {str(size): device.at_once(size) for size in CLUSTER_SIZES[1:]}
