"""The tests of the ops on the device, run by pytest."""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec

from benchmarks.commands import INTERRUPT_SECONDS, run
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.machine import cpu_count

# The tests that need a GPU, except for those that compile by inductor, and every op over the table of shapes;
# in order of importance, as the stage may run out of time.
RUNS: dict[str, tuple[str, ...]] = {
    "CUDA kernels and graphs": (
        *("tests/gpu/test_graphed.py", "tests/gpu/test_streams.py", "tests/gpu/test_hang.py"),
        *("tests/gpu/test_launches.py", "tests/gpu/test_devices.py", "tests/gpu/test_training.py"),
    ),
    "plans of the scans": ("tests/gpu/test_scan_plans.py", "tests/gpu/test_exchange_floor.py"),
    "every op": ("tests/ops/test_table.py",),
}
# Each worker has a context on the GPU and compiles kernels on a processor.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one continues. The first tests compile the kernels of a step.
SECONDS_A_TEST = 60
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each run of pytest; none in a quick run, which only tests the stages."""
    for name, paths in {} if stage.quick else RUNS.items():
        yield Unit(f"pytest, {name}", partial(run_tests, stage, name, paths), seconds=float("inf"))


def run_tests(stage: Stage, name: str, paths: Sequence[str]) -> None:
    """Record pytest's counts and its lines on failed and skipped tests; raise if a test failed.

    A run that exceeds its time has not failed for that reason.
    """
    ended = run(command(stage, paths), stage.left() - INTERRUPT_SECONDS)
    lines = re.findall(
        r"^(?:FAILED|ERROR|SKIPPED) .*|^.*\d+ (?:passed|failed|skipped).* in [\d.]+s.*",
        ended.output,
        re.MULTILINE,
    )
    stage.record.detail(**{f"tests: {name}": lines[-SHOWN:]})
    if ended.status is None and not any(line.startswith(("FAILED", "ERROR")) for line in lines):
        stage.record.not_run(f"pytest, {name}", "the remaining tests", "the stage ran out of time")
    elif ended.status != 0:
        raise RuntimeError(f"pytest: {ended.describe()}")


def command(stage: Stage, paths: Sequence[str]) -> list[str]:
    """The command of pytest, with workers and a time limit for each test if the plugins are installed."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q"]
    words += ["--device", stage.device, "-p", "no:cacheprovider", "--tb=short", "-rfEs"]
    if find_spec("xdist"):
        words += ["-n", str(min(MOST_WORKERS, cpu_count())), "--dist", "load"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS_A_TEST}", "--timeout-method=thread"]
    return [*words, *paths]
