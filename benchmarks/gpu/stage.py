"""The worker of a run: ``python -m benchmarks.gpu.stage OPTIONS`` is what the runner starts.

A stage is a list of units, and all units share this process. A unit that raises is recorded and the next
begins. One that hangs, or leaves the device broken, ends the process with
:data:`~benchmarks.gpu.runner.START_AGAIN`; a new worker continues after it.
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
    """Raised by a unit after which this process should run no other unit.

    A capture that fails can leave torch's allocator in capture mode, and a profiler slows down every later
    launch. With a message the unit has failed; without, the record says all there is to say.
    """


class Unit(NamedTuple):
    """A part of a stage that may fail by itself; after ``seconds`` it is considered hung.

    One that all later stages depend on may ``overrun`` its own stage, at their expense.
    """

    name: str
    run: Callable[[], object]
    seconds: float = 30.0
    overrun: bool = False


class Stage(Options):
    """The surroundings of a stage's units: the settings of the run, ``end`` being that of the stage."""


def run_units(units: Sequence[Unit], stage: Stage) -> None:
    """Run them in order; those that no time is left for are recorded as not run."""
    for number, unit in enumerate(units):
        if stage.left() <= 0 and not unit.overrun:
            return _name_left(stage, units[number:])
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


def _name_left(stage: Stage, units: Sequence[Unit]) -> None:
    for unit in units:
        stage.record.not_run(unit.name, "all", "the time of the stage was spent")


def _watch(unit: Unit, units: Sequence[Unit], stage: Stage, start: float) -> threading.Timer:
    """A timer that ends the process when the unit takes too long, with every thread's traceback in the log.

    A unit that is cut off by the end of its stage has not failed, unless it may take all of the stage.
    """
    left = float("inf") if unit.overrun else stage.left() + GRACE / 2
    seconds = min(unit.seconds, left)

    def expired() -> None:
        faulthandler.dump_traceback()
        cut_off = left < unit.seconds < float("inf")
        why = None if cut_off else f"no end within {seconds:.0f} s"
        stage.record.unit(unit.name, time.monotonic() - start, why)
        if cut_off:
            _name_left(stage, units)
            stage.record.add("stage_ended", {"error": None})
        stage.write_results()
        leave(START_AGAIN)

    timer = threading.Timer(seconds, expired)
    timer.daemon = True
    timer.start()
    return timer


def leave(status: int) -> None:
    """End the process at once, whatever its other threads do; what they broke ends with it."""
    sys.stdout.flush()
    os._exit(status)


def settle() -> None:
    """Wait for the device, and raise here what its kernels have recorded of a hang."""
    import torch

    from dmm_fast import _extension

    torch.cuda.synchronize()
    _extension.raise_on_hang()


def device_works() -> bool:
    """Whether this process can still use the GPU."""
    with suppress(Exception):
        settle()
        return True
    return False


def run_stage(name: str, options: Options) -> None:
    """Run a stage from where an earlier worker has left it, and record its end."""
    before = options.record.of_stage(name)
    if options.left() <= 0 or of_kind(before, "stage_ended"):
        return
    options.record.add("stage_begun", {"name": name})
    spent, error = {unit["unit"]: unit["seconds"] for unit in of_kind(before, "unit")}, None
    budgets = options.stages | {name: max(options.stages[name] - sum(spent.values()), 0.0)}
    module, _, function = STAGES[name][0].rpartition(".")
    try:
        # The first import of torch takes seconds; the clock of the stage begins after it.
        units: Callable[[Stage], Iterable[Unit]]
        units = getattr(importlib.import_module(f"benchmarks.gpu.stages.{module}"), function)
        limit = share(name, budgets, options.left())
        same = {each.name: getattr(options, each.name) for each in fields(options)}
        stage = Stage(**{**same, "end": time.monotonic() + limit})
        print(f"\n--- {name}: up to {limit:.0f} s", flush=True)
        if name != "smoke" and stage.record.of_stage("smoke"):
            importlib.import_module("benchmarks.gpu.smoke").fall_back(stage.record, stage.device)
        # By their names: one that two parts of a stage need is run once.
        listed = {unit.name: unit for unit in units(stage) if unit.name not in spent}
    except Exception as raised:
        error = whole_traceback(raised)
        print(f"  FAILED {name}: {error}", flush=True)
    else:
        run_units(list(listed.values()), stage)
    options.record.add("stage_ended", {"error": error})
    options.write_results()


def main(argv: Sequence[str]) -> int:
    """Run the stages that have not ended yet. Returns 0: what failed is in the record."""
    told = json.loads(argv[0])
    options = Options(**{**told, "out": Path(told["out"])})
    if options.plugin:
        importlib.import_module(options.plugin).install()
    for name in options.stages:
        run_stage(name, options)
    return 0


if __name__ == "__main__":
    # Through the module that the stages import: what they raise are its exceptions, not this script's. All is
    # on the disk by then, and threads that compilers leave behind would abort an orderly end.
    module = importlib.import_module("benchmarks.gpu.stage")
    module.leave(module.main(sys.argv[1:]))
