"""Every op once, in many processes: so Triton compiles on all processors what is timed later on one."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu.commands import LAST_WORDS, Ended, run
from benchmarks.gpu.stage import Stage, Unit

MOST_PROCESSES = 14


def units(stage: Stage) -> Iterator[Unit]:
    """All of them at once."""
    yield Unit("compile", lambda: compile_all(stage), seconds=float("inf"))


def compile_all(stage: Stage) -> None:
    """Split the jobs over processes; what fails in one is told by its output."""
    parts = min(MOST_PROCESSES, os.cpu_count() or 1)
    with ThreadPoolExecutor(parts) as pool:
        every = list(pool.map(lambda part: _part(stage, part, parts), range(parts)))
    said = [line for ended in every for line in ended.output.splitlines()]
    stage.record.detail(exercised=sum(line.startswith("exercised ") for line in said))
    bad = [ended for ended in every if ended.status != 0]
    if bad:
        raise RuntimeError(f"{len(bad)} of {parts} processes failed, one: {bad[0].describe()}")


def _part(stage: Stage, part: int, parts: int) -> Ended:
    command = [sys.executable, "-m", "benchmarks.gpu.exercise", "--device", stage.device]
    command += ["--part", str(part), str(parts)] + ["--all"] * (not stage.quick)
    return run(command, stage.left() - LAST_WORDS)
