"""Facts about the machine, the software versions and the compiled library."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.stage import Stage, Unit
from dmm_fast import ops
from dmm_fast.cuda.devices import CLUSTER_SIZES, cuda_device


def units(stage: Stage) -> Iterator[Unit]:
    """Units for versions, the library, the initial clocks, and properties of the GPU."""
    yield Unit("meta", lambda: stage.record.add("meta", meta(stage)))
    asked: dict[str, Callable[[], object]]
    asked = {"library": partial(library, stage.device), "clocks": machine.clocks}
    if stage.device == "cuda":
        asked["properties"] = lambda: str(torch.cuda.get_device_properties(0))
        asked |= {"stream": stream, "clusters_at_once": clusters}
    for name, ask in asked.items():
        yield Unit(name, partial(record_fact, stage, name, ask))


def record_fact(stage: Stage, name: str, ask: Callable[[], object]) -> None:
    """Record and print a fact."""
    found = ask()
    stage.record.detail(**{name: found})
    print(f"  {name}: {found}", flush=True)


def meta(stage: Stage) -> dict[str, object]:
    """The metadata of a results file, with the given commit outside a git checkout."""
    known = machine.meta(torch.device(stage.device), quick=stage.quick)
    return known | ({"commit": stage.commit} if stage.commit else {})


def library(device: str) -> dict[str, object]:
    """Facts about the compiled library.

    Raises:
        RuntimeError: the library has no kernels for the device.
    """
    found = ops.info()
    if not found["cuda_architectures" if device == "cuda" else "instruction_set"]:
        raise RuntimeError(f"the library: expected kernels for {device}, got none: {found['missing']}")
    return {key: found[key] for key in ("instruction_set", "cuda_architectures", "missing")}


def stream() -> str:
    """Test whether a kernel runs on the current stream of torch, which the library must look up."""
    param, grad, average, square = (torch.tensor([n], device="cuda") for n in (3.0, 1.0, 0.0, 0.0))
    numbers: dict[str, Any] = {"step": 1, "lr": 1.0, "beta1": 0.0, "beta2": 0.0, "eps": 0.0}
    numbers |= {"weight_decay": 0.0, "clip_norm": 1.0}
    # With betas of 0, the parameter changes by the learning rate against the sign of its gradient.
    with ops.use_backend("cuda"):
        ops.clipped_adam([param], [grad], [average], [square], **numbers)
    return "found" if param.item() == 2.0 else "a kernel on it returned a wrong result"


def clusters() -> dict[str, int]:
    """The number of concurrent clusters of each size whose blocks use the maximum of shared memory."""
    device = cuda_device(torch.cuda.current_device())
    return {str(size): device.at_once(size) for size in CLUSTER_SIZES[1:]}
