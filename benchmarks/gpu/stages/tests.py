"""The tests of the ops on the device."""

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from benchmarks.gpu.commands import INTERRUPT_SECONDS, run
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.machine import cpu_count

# The tests that only a GPU can run, and every op over the table of shapes.
PATHS = ("tests/gpu", "tests/ops/test_table.py")
QUICK = ("tests/gpu", "tests/ops/test_table.py", "-k", "emitter and small or gpu")
# Each worker has a context on the GPU and compiles kernels on a processor of its own.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one goes on.
SECONDS_A_TEST = 20
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """A run of pytest over the tests that matter most."""
    yield Unit("pytest", lambda: run_tests(stage), seconds=float("inf"))


def run_tests(stage: Stage) -> None:
    """Record pytest's lines on tests that failed or were skipped, and its counts; raise where one failed."""
    ended = run(command(stage), stage.left() - INTERRUPT_SECONDS)
    told = re.findall(r"^(?:FAILED|ERROR|SKIPPED) .*|^.*\d+ passed.* in .*", ended.output, re.MULTILINE)
    stage.record.detail(tests=told[-SHOWN:])
    if ended.status != 0:
        raise RuntimeError(f"pytest: {ended.describe()}")


def command(stage: Stage) -> list[str]:
    """The call of pytest, with workers and a limit for each test where the plugins are installed."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q"]
    words += ["--device", stage.device, "-p", "no:cacheprovider", "--tb=short", "-rfEs"]
    if find_spec("xdist"):
        words += ["-n", str(min(MOST_WORKERS, cpu_count())), "--dist", "load"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS_A_TEST}", "--timeout-method=thread"]
    return [*words, *(QUICK if stage.quick else PATHS)]
