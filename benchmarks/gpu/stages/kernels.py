"""Every op once at the tutorial's sizes, in many processes: Triton compiles on all processors."""

import os
import sys
from collections.abc import Iterator

from benchmarks.gpu.commands import LAST_WORDS, run
from benchmarks.gpu.stage import Stage, Unit

MOST_PROCESSES = 14


def units(stage: Stage) -> Iterator[Unit]:
    """All of them at once."""
    yield Unit("compile", lambda: compile_all(stage), seconds=float("inf"))


def compile_all(stage: Stage) -> None:
    """Raise where one of the ops failed, with the end of the output."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    command = [sys.executable, "-m", "benchmarks.gpu.exercise", "--device", stage.device]
    command += ["--processes", str(processes)] + ["--tutorial"] * (not stage.quick)
    failed = [row for row in stage.record.found("smoke") if not row["ok"]]
    command += ["--without", *(f"{row['op']}:{row['backend']}" for row in failed)]
    ended = run(command, stage.left() - LAST_WORDS)
    stage.record.detail(exercised=ended.output.count("\nexercised ") + ended.output.startswith("exercised "))
    if ended.status != 0:
        raise RuntimeError(f"exercise: {ended.describe(20)}")
