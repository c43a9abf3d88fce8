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
PLANS = "scan_plans or hang or exchange_floor"
CUDA = f"cuda and not ({PLANS})"
QUICK = "emitter and small or gpu"
# Each worker has a context on the GPU and compiles kernels on a processor of its own.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one goes on.
SECONDS_A_TEST = 20
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """Three runs of pytest."""
    rest = f"not ({PLANS}) and not cuda"
    for name, chosen in (("plans of the scans", PLANS), ("CUDA kernels", CUDA), ("the others", rest)):
        yield Unit(f"pytest, {name}", partial(run_tests, stage, chosen), seconds=float("inf"))


def run_tests(stage: Stage, chosen: str) -> None:
    """Record pytest's lines on tests that failed or were skipped, and its counts; raise where one failed.

    A run whose time is up has not failed by that.
    """
    ended = run(command(stage, chosen), stage.left() - INTERRUPT_SECONDS)
    told = re.findall(
        r"^(?:FAILED|ERROR|SKIPPED) .*|^.*\d+ (?:passed|failed|skipped).* in [\d.]+s.*",
        ended.output,
        re.MULTILINE,
    )
    stage.record.detail(**{f"tests: {chosen}": told[-SHOWN:]})
    if ended.status is None and not any(line.startswith(("FAILED", "ERROR")) for line in told):
        stage.record.not_run(f"pytest, {chosen}", "the rest of them", "the time of the stage was spent")
    elif ended.status != 0:
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
