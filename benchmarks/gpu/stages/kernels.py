"""Every op once at the tutorial's sizes, in many processes: Triton compiles on all processors."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from benchmarks.gpu.exercise import exercise, jobs
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.machine import cpu_count

MOST_PROCESSES = 14


def units(stage: Stage) -> Iterator[Unit]:
    """All of them at once."""
    yield Unit("compile", lambda: compile_all(stage), seconds=float("inf"))


def compile_all(stage: Stage) -> None:
    """Leave out the kernels that failed the smoke test; raise where an op fails here."""
    failed = {(row["op"], row["backend"]) for row in stage.record.failed_kernels()}
    todo = [job for job in jobs(stage.device, not stage.quick) if job[:2] not in failed]
    with ProcessPoolExecutor(min(MOST_PROCESSES, cpu_count()), get_context("spawn")) as pool:
        errors = list(filter(None, pool.map(partial(exercise, stage.device), todo)))
    if errors:
        raise RuntimeError("\n".join(errors))
