"""Smoke tests of every CUDA kernel, in concurrent processes with time limits of their own."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from benchmarks.commands import run
from benchmarks.gpu.record import Row
from benchmarks.gpu.smoke import EVERY, READY, RESULT, row_of
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.report.smoke import smoke_table

# Limits for a kernel, and for its process to import torch and create a context before.
SECONDS, STARTING = 10.0, 45.0


def units(stage: Stage) -> Iterator[Unit]:
    """A single unit for all kernels."""
    yield Unit("smoke", partial(check_all, stage), STARTING + 2 * SECONDS, overrun=True)


def check_all(stage: Stage) -> None:
    """Record a row for each kernel; raise if one of them failed."""
    with ThreadPoolExecutor(len(EVERY)) as pool:
        for ended in as_completed(pool.submit(run_kernel, stage, name) for name in EVERY):
            stage.record.add("smoke", ended.result())
    print(smoke_table(stage.record.found("smoke")), flush=True)
    failed = [row["kernel"] for row in stage.record.failed_kernels()]
    if failed:
        raise RuntimeError(f"failed the smoke test: {', '.join(failed)}")


def run_kernel(stage: Stage, name: str) -> Row:
    """The row printed by the process of a kernel, or a row that describes how the process ended."""
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.smoke", name, "--device", stage.device]
    command += ["--quick"] * stage.quick + (["--plugin", stage.plugin] if stage.plugin else [])
    ended = run(command, SECONDS, show=False, ready=READY, starting=STARTING, interrupt=0.0)
    for line in ended.output.splitlines():
        if line.startswith(RESULT):
            row: Row = json.loads(line.removeprefix(RESULT))
            return row
    return row_of(name, stage.device) | {"ok": False, "failed": ended.describe(40)}
