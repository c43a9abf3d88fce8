"""The tests of the ops on the device."""

import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.commands import LAST_WORDS, run
from benchmarks.gpu.stage import Stage, Unit

# The tests that only a GPU can run, and every op over the table of shapes.
PATHS = ("tests/gpu", "tests/ops/test_table.py")
QUICK = ("tests/gpu", "tests/ops/test_table.py", "-k", "emitter and small or gpu")
# Each worker has a context on the GPU and compiles kernels on a processor of its own.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one goes on.
SECONDS_A_TEST = 20
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """One run of pytest over the tests that matter most."""
    yield Unit("pytest", lambda: run_tests(stage), seconds=float("inf"))


def run_tests(stage: Stage) -> None:
    """Run them and read what pytest prints of them; raise where one failed."""
    ended = run(command(stage), stage.left() - LAST_WORDS)
    found = outcome(ended.output)
    stage.record.detail(tests=found)
    if ended.status != 0 or not found["passed"]:
        raise RuntimeError(f"pytest: {found}, {ended.describe(3)}")


def command(stage: Stage) -> list[str]:
    """The call of pytest, with workers and a limit for each test where the plugins are installed."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q"]
    words += ["--device", stage.device, "-p", "no:cacheprovider", "--tb=short", "-rfEs"]
    if find_spec("xdist"):
        words += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "load"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS_A_TEST}", "--timeout-method=thread"]
    return [*words, *(QUICK if stage.quick else PATHS)]


def outcome(output: str) -> dict[str, Any]:
    """The counts of pytest's last line, and its lines on tests that failed or were skipped."""
    counts = dict.fromkeys(("passed", "failed", "skipped", "error"), 0)
    summary = [
        line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error).* in ", line)
    ]
    for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", summary[-1]) if summary else ():
        counts[name] = int(number)
    told = re.findall(r"^(?:FAILED|ERROR|SKIPPED) .*", output, re.MULTILINE)
    return counts | {"told": told[:SHOWN]}
