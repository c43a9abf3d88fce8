"""Triton kernels for a GPU, on a machine without one: ``python -m tests.benchmarks.launched WHAT``.

``compile``: compile the kernels of an op; prints the name of each and whether it was in the cache. ``note``:
print the kernels that a job of an op and the stage of errors launch, and the launches of a step that the tile
sweep times, without compiling or launching them.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

torch.version.cuda = torch.version.cuda or "none"

import triton  # noqa: E402
from triton import knobs  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from benchmarks import errors  # noqa: E402
from benchmarks.draws import Sizes  # noqa: E402
from benchmarks.gpu.call_ops import call_op  # noqa: E402
from benchmarks.gpu.stage import Stage  # noqa: E402
from benchmarks.gpu.stages import tiles  # noqa: E402
from benchmarks.gpu.stages.steps import tutorial_case  # noqa: E402
from dmm_fast import ops  # noqa: E402
from tests.triton.compile_table import NoGpu, take_cpu_tensors  # noqa: E402

# The tutorial's number of steps, as the sum over steps is compiled for it.
NARROW = Sizes(D=8, Z=8, H=16, R=8, G=8, E=8, F=8)


def compiled(folder: str) -> dict[str, Any]:
    """Compile kernels; returns them with cache hits, and the functions that have no name by then."""
    found: list[tuple[str, bool]] = []
    knobs.cache.dir = folder
    knobs.compilation.listener = lambda *, src, cache_hit, **told: found.append((src.name, cache_hit))
    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **options: run(
        self, *args, grid=grid, warmup=True, **options
    )
    modules = [module for name, module in sys.modules.items() if name.startswith("dmm_fast.triton.")]
    functions = [value for m in modules for value in vars(m).values() if isinstance(value, JITFunction)]
    nameless = [function.__name__ for function in functions if function.hash is None]
    call_op("cpu", "normal_log_prob", "triton", Sizes(B=2, T=3))
    return {"found": found, "functions": len(functions), "nameless": nameless}


def noted(folder: str) -> dict[str, Any]:
    """The kernels launched by each job, and the launches of a step."""
    seen: set[tuple[str, str]] = set()

    def note(*, key: Any, fn: Any, **told: Any) -> bool:
        seen.add((fn.name, str(key)))
        return True  # nothing is compiled, and nothing launched

    knobs.runtime.jit_cache_hook = note

    def kernels_of(call: Callable[[], object]) -> set[tuple[str, str]]:
        seen.clear()
        call()
        return set(seen)

    def errors_of(op: str) -> None:
        for lengths in ("full", "ragged"):
            inputs = errors.arguments(op, replace(NARROW, lengths=lengths), torch.Generator())
            with ops.use_backend("triton"):
                errors.results_of(op)(getattr(ops, op), inputs)

    by_op = {}
    for op in ("rnn_scan", "flow_scan", "emitter"):
        by_job = kernels_of(partial(call_op, "cpu", op, "triton", NARROW))
        by_errors = kernels_of(partial(errors_of, op))
        by_op[op] = {"job": len(by_job), "missing": sorted(name for name, _ in by_errors - by_job)}
    stage = Stage(Path(folder), device="cpu", quick=True, end=time.monotonic() + 60.0)
    with ops.use_backend("triton"):
        launches = tiles.launches_of(tutorial_case(stage))
        own = [len(kernels_of(partial(run_others, launch))) for launch in launches]
    jobs = [job.name for job in tiles.candidate_jobs(stage, launches)]
    described = [
        {"name": one.name, "chosen": tiles.described(one.chosen), "others": len(one.others), "kernels": n}
        for one, n in zip(launches, own, strict=True)
    ]
    return {"ops": by_op, "jobs": jobs, "launches": described}


def run_others(launch: tiles.Launch) -> None:
    """Run a launch with each candidate."""
    for candidate in launch.others:
        launch.run(candidate)


if __name__ == "__main__":
    torch.set_num_threads(1)
    take_cpu_tensors()
    triton.runtime.driver.set_active(NoGpu(90))
    print(json.dumps({"compile": compiled, "note": noted}[sys.argv[1]](sys.argv[2])))
