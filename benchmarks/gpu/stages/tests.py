"""The tests of the ops on the device: shapes, extremes, invariants, bad input, what only a GPU can show."""

import os
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import LAST_WORDS, run
from benchmarks.gpu.stage import Stage, Unit

# In this order, so that what matters most is done if the time is too short.
PATHS = (
    "tests/ops/test_table.py",
    "tests/gpu",
    *("tests/ops/test_clipped_adam.py", "tests/ops/test_extremes.py", "tests/ops/test_bad_input.py"),
    *("tests/kernels/test_triton_functions.py", "tests/kernels/test_triton_half.py"),
    *("tests/ops/test_native.py", "tests/ops/test_invariants.py"),
)
QUICK = ("tests/gpu", "tests/ops/test_table.py", "-k", "emitter and small or gpu")
# Each worker has a context on the GPU and compiles kernels on a processor of its own.
MOST_WORKERS = 12
# A test that hangs ends its worker, and a new one goes on.
SECONDS_A_TEST = 90
SHOWN = 60


def units(stage: Stage) -> Iterator[Unit]:
    """One run of pytest."""
    yield Unit("pytest", lambda: run_tests(stage), seconds=float("inf"))


def run_tests(stage: Stage) -> None:
    """Run them and read their report; without one, say how pytest ended."""
    report = stage.out / "tests.xml"
    ended = run(command(stage, report), stage.left() - LAST_WORDS)
    found = read_report(report) if report.is_file() else None
    if found is not None:
        stage.record.detail(tests=found)
    if ended.status != 0 or found is None:
        counts = {k: found[k] for k in ("passed", "failed", "skipped")} if found else "no report"
        raise RuntimeError(f"pytest: {counts}, {ended.describe(3)}")


def command(stage: Stage, report: Path) -> list[str]:
    """pytest with what is installed: workers and a limit for each test where there are plugins for it."""
    words = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers", "-q"]
    words += ["--device", stage.device, "-p", "no:cacheprovider", "--tb=short", "-rfE"]
    words += ["--junitxml", str(report)]
    if find_spec("xdist"):
        words += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "load"]
    if find_spec("pytest_timeout"):
        words += [f"--timeout={SECONDS_A_TEST}", "--timeout-method=thread"]
    return [*words, *(QUICK if stage.quick else PATHS)]


def read_report(path: Path) -> dict[str, Any]:
    """The counts of a JUnit report, why tests were skipped, and the first failures with their messages."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    bad = [(case, child) for case in cases for child in case if child.tag in ("failure", "error")]
    skipped = [child.get("message", "") for case in cases for child in case if child.tag == "skipped"]
    failures = [
        {"test": f"{case.get('classname')}::{case.get('name')}", "message": child.get("message", "")[:300]}
        for case, child in bad
    ]
    broken = {id(case) for case, _ in bad}
    return {
        "passed": len(cases) - len(broken) - len(skipped),
        "failed": len(broken),
        "skipped": len(skipped),
        "seconds": sum(float(case.get("time", 0)) for case in cases),
        "skipped_because": dict(Counter(skipped)),
        "failures": failures[:SHOWN],
    }
