"""The tests of the ops on the device."""

import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

from benchmarks.commands import INTERRUPT_SECONDS, run
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.machine import cpu_count

# The tests that only a GPU can run, but for those that compile through inductor, and every op over the table
# of shapes; first those of the CUDA kernels, as the time may end.
PATHS = ("tests/gpu", "tests/ops/test_table.py", "--ignore", "tests/gpu/test_compiled.py")
CUDA = "cuda or hang or exchange_floor or scan_plans"
QUICK = "emitter and small or gpu"
# Each worker has a context on the GPU and compiles kernels on a processor of its own.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one goes on.
SECONDS_A_TEST = 20
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """Two runs of pytest."""
    for name, chosen in (("CUDA kernels", CUDA), ("the others", f"not ({CUDA})")):
        yield Unit(f"pytest, {name}", partial(run_tests, stage, chosen), seconds=float("inf"))


def run_tests(stage: Stage, chosen: str) -> None:
    """Record pytest's lines on tests that failed or were skipped, and its counts; raise where one failed."""
    ended = run(command(stage, chosen), stage.left() - INTERRUPT_SECONDS)
    told = re.findall(
        r"^(?:FAILED|ERROR|SKIPPED) .*|^.*\d+ (?:passed|failed|skipped).* in [\d.]+s.*",
        ended.output,
        re.MULTILINE,
    )
    stage.record.detail(**{f"tests: {chosen}": told[-SHOWN:]})
    if ended.status != 0:
        raise RuntimeError(f"pytest: {ended.describe()}")


def command(stage: Stage, chosen: str) -> list[str]:
    """The call of pytest, with workers and a limit for each test where the plugins are installed."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q"]
    words += ["--device", stage.device, "-p", "no:cacheprovider", "--tb=short", "-rfEs"]
    if find_spec("xdist"):
        words += ["-n", str(min(MOST_WORKERS, cpu_count())), "--dist", "load"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS_A_TEST}", "--timeout-method=thread"]
    return [*words, *PATHS, "-k", f"({chosen}) and ({QUICK})" if stage.quick else chosen]
