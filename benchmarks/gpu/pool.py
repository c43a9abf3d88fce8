"""A pool of processes for jobs, so that Triton compiles on all processors."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import Stage
from benchmarks.machine import cpu_count
from dmm_fast import ops

MOST_PROCESSES = 14
# No job begins in the last seconds of a stage, as running jobs need a few seconds to end.
LAST_SECONDS = 3.0


class Job(NamedTuple):
    """A function to call in another process, and its name in reports. Function and value are pickled."""

    name: str
    run: Callable[[], Any]


class Ended(NamedTuple):
    """The result of a job: its value, or the traceback of its exception."""

    name: str
    value: Any
    error: str | None


def attempt(device: str, job: Job) -> Ended:
    """Run a job, synchronise, and print its name."""
    try:
        value = job.run()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return Ended(job.name, None, f"{job.name}: {whole_traceback(error)}")
    print(f"called {job.name}", flush=True)
    return Ended(job.name, value, None)


def run_all(
    stage: Stage,
    jobs: Sequence[Job],
    prepare: Callable[[Stage], object] | None = None,
    seconds: float = math.inf,
) -> Iterator[Ended]:
    """Run the jobs in order in several processes, each of which calls ``prepare`` first.

    Jobs that have not begun within ``seconds``, or shortly before the end of the stage, are recorded as not
    run.

    Raises:
        BrokenProcessPool: a process died, or ``prepare`` raised.
    """
    processes = min(MOST_PROCESSES, cpu_count(), max(1, len(jobs)))
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (stage, prepare)) as pool:
        futures: dict[Future[Ended], Job] = {pool.submit(attempt, stage.device, job): job for job in jobs}
        _, late = wait(futures, max(0.0, min(seconds, stage.left() - LAST_SECONDS)))
        for future in late:
            future.cancel()
        for future, job in futures.items():
            if future.cancelled():
                stage.record.not_run(job.name, "all", "the stage ran out of time")
            else:
                yield future.result()


def _begin(stage: Stage, prepare: Callable[[Stage], object] | None) -> None:
    """Initialise a process of the pool."""
    for op, backend in stage.record.replaced.items():
        ops.use_backend(backend, ops=(op,))
    if prepare is not None:
        prepare(stage)
