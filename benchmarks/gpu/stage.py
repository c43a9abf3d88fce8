"""Worker process of a run, started by the runner as ``python -m benchmarks.gpu.stage OPTIONS``.

A stage is a list of units, all of which run in this process. If a unit raises, the error is recorded and the
next unit begins. If a unit hangs, or leaves the device unusable, the process ends with
:data:`~benchmarks.gpu.runner.START_AGAIN`, and a new worker continues after that unit.
"""

import faulthandler
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.record import of_kind, whole_traceback
from benchmarks.gpu.runner import GRACE, STAGES, START_AGAIN, Options, share


class ProcessSpentError(RuntimeError):
    """Raised by a unit to end this process, without any further unit.

    A failed capture can leave torch's allocator in capture mode, and a profiler slows down every later
    launch. With a message the unit counts as failed, without one as successful.
    """


class Unit(NamedTuple):
    """A part of a stage that can fail independently; after ``seconds`` it is considered hung.

    A unit with ``overrun`` may exceed the time of its stage, because all later stages depend on it.
    """

    name: str
    run: Callable[[], object]
    seconds: float = 30.0
    overrun: bool = False


class Stage(Options):
    """The settings of the run, with the ``end`` of one stage; passed to its units."""


def run_units(units: Sequence[Unit], stage: Stage) -> None:
    """Run the units in order; units that no time is left for are recorded as not run."""
    for number, unit in enumerate(units):
        if stage.left() <= 0 and not unit.overrun:
            return _record_not_run(stage, units[number:])
        start = time.monotonic()
        stage.record.add("begun", {"unit": unit.name})
        watch = _watch(unit, units[number:], stage, start)
        error, unfit = None, False
        try:
            unit.run()
            if stage.device == "cuda":
                settle()
        except ProcessSpentError as raised:
            unfit = True
            error = whole_traceback(raised) if raised.args else None
        except Exception as raised:
            error = whole_traceback(raised)
            print(f"  FAILED {unit.name}: {error}", flush=True)
        watch.cancel()
        stage.record.unit(unit.name, time.monotonic() - start, error)
        stage.write_results()
        if unfit or (error and stage.device == "cuda" and not device_works()):
            leave(START_AGAIN)
    return None


def _record_not_run(stage: Stage, units: Sequence[Unit]) -> None:
    for unit in units:
        stage.record.not_run(unit.name, "all", "the stage ran out of time")


def _watch(unit: Unit, units: Sequence[Unit], stage: Stage, start: float) -> threading.Timer:
    """Start a timer that ends the process if the unit takes too long, and logs the traceback of every thread.

    A unit that is ended because its stage is over has not failed, unless its own limit is infinite.
    """
    left = float("inf") if unit.overrun else stage.left() + GRACE / 2
    seconds = min(unit.seconds, left)

    def expired() -> None:
        faulthandler.dump_traceback()
        cut_off = left < unit.seconds < float("inf")
        why = None if cut_off else f"not finished within {seconds:.0f} s"
        stage.record.unit(unit.name, time.monotonic() - start, why)
        if cut_off:
            _record_not_run(stage, units)
            stage.record.add("stage_ended", {"error": None})
        stage.write_results()
        leave(START_AGAIN)

    timer = threading.Timer(seconds, expired)
    timer.daemon = True
    timer.start()
    return timer


def leave(status: int) -> None:
    """End the process at once, without waiting for its other threads."""
    sys.stdout.flush()
    os._exit(status)


def settle() -> None:
    """Synchronise, and raise an error if a kernel has recorded a hang."""
    import torch

    from dmm_fast import _extension

    torch.cuda.synchronize()
    _extension.raise_on_hang()


def device_works() -> bool:
    """True if this process can still use the GPU."""
    with suppress(Exception):
        settle()
        return True
    return False


def run_stage(name: str, options: Options) -> None:
    """Run a stage, continuing after the units of an earlier worker, and record its end."""
    before = options.record.of_stage(name)
    if options.left() <= 0 or of_kind(before, "stage_ended"):
        return
    options.record.add("stage_begun", {"name": name})
    spent, error = {unit["unit"]: unit["seconds"] for unit in of_kind(before, "unit")}, None
    budgets = options.stages | {name: max(options.stages[name] - sum(spent.values()), 0.0)}
    module, _, function = STAGES[name][0].rpartition(".")
    try:
        # The first import of torch takes seconds; the time of the stage begins after it.
        units: Callable[[Stage], Iterable[Unit]]
        units = getattr(importlib.import_module(f"benchmarks.gpu.stages.{module}"), function)
        limit = share(name, budgets, options.left())
        same = {each.name: getattr(options, each.name) for each in fields(options)}
        stage = Stage(**{**same, "end": time.monotonic() + limit})
        print(f"\n--- {name}: up to {limit:.0f} s", flush=True)
        if name != "smoke" and stage.record.of_stage("smoke"):
            importlib.import_module("benchmarks.gpu.smoke").fall_back(stage.record, stage.device)
        # By name, so that a unit that two parts of a stage list runs once.
        listed = {unit.name: unit for unit in units(stage) if unit.name not in spent}
    except Exception as raised:
        error = whole_traceback(raised)
        print(f"  FAILED {name}: {error}", flush=True)
    else:
        run_units(list(listed.values()), stage)
    options.record.add("stage_ended", {"error": error})
    options.write_results()


def main(argv: Sequence[str]) -> int:
    """Run the stages that have not ended yet. Returns 0; failures are in the record."""
    decoded = json.loads(argv[0])
    options = Options(**{**decoded, "out": Path(decoded["out"])})
    if options.plugin:
        importlib.import_module(options.plugin).install()
    for name in options.stages:
        run_stage(name, options)
    return 0


if __name__ == "__main__":
    # Run as the module that the stages import, so that exception classes are the same. All findings are on
    # disk at the end, and remaining threads of compilers would abort an orderly exit.
    module = importlib.import_module("benchmarks.gpu.stage")
    module.leave(module.main(sys.argv[1:]))
