"""One stage in a process of its own: ``python -m benchmarks.gpu.stage NAME ..`` is what the runner starts.

A stage is a list of units. A unit that raises is recorded and the next begins. One that hangs, or leaves the
device broken, ends the process with :data:`~benchmarks.gpu.runner.START_AGAIN`; a new one goes on after it.
"""

import argparse
import faulthandler
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.record import Record, last_lines
from benchmarks.gpu.runner import GRACE, START_AGAIN


class ProcessSpentError(RuntimeError):
    """What a unit raises when this process is not to be trusted with another one.

    A capture that fails can leave torch's allocator as if it went on. With a message the unit has failed;
    without, all there is to say is in the record.
    """


class Unit(NamedTuple):
    """A part of a stage that may fail by itself; past ``seconds`` it is taken to hang."""

    name: str
    run: Callable[[], object]
    seconds: float = 30.0


@dataclass(frozen=True)
class Stage:
    """What a stage is given."""

    record: Record
    out: Path
    device: str
    end: float
    quick: bool = False
    keep_build: bool = False
    commit: str | None = None
    data: Path | None = None

    def left(self) -> float:
        """Seconds until this stage has to be over."""
        return self.end - time.monotonic()


def run_units(units: Sequence[Unit], stage: Stage, skip: int) -> None:
    """Run them all but the first ``skip``; where the time is up, those that are left are named."""
    for number in range(skip, len(units)):
        unit, later = units[number], units[number + 1 :]
        if stage.left() <= 0:
            _name_left(stage, units[number:])
            return
        start = time.monotonic()
        stage.record.add("begun", {"unit": unit.name})
        watch = _watch(unit, later, stage, start)
        error, unfit = None, False
        try:
            unit.run()
        except ProcessSpentError as raised:
            unfit = True
            error = last_lines(raised) if raised.args else None
        except Exception as raised:
            error = last_lines(raised)
            print(f"  FAILED {unit.name}: {error}", flush=True)
        watch.cancel()
        stage.record.unit(unit.name, time.monotonic() - start, error)
        if unfit or (error and stage.device == "cuda" and not device_works()):
            leave(START_AGAIN)


def _name_left(stage: Stage, units: Sequence[Unit]) -> None:
    for unit in units:
        stage.record.not_run(unit.name, "all", "the time of the stage was spent")


def _watch(unit: Unit, later: Sequence[Unit], stage: Stage, start: float) -> threading.Timer:
    """What ends the process when the unit takes too long, with every thread's traceback in the log.

    A unit that is cut off by the end of the stage has not failed, unless the stage is all it needs.
    """
    left = stage.left() + GRACE / 2
    cut_off = left < unit.seconds < float("inf")
    seconds = min(unit.seconds, left)

    def expired() -> None:
        faulthandler.dump_traceback()
        if cut_off:
            _name_left(stage, [unit, *later])
            leave(0)
        stage.record.unit(unit.name, time.monotonic() - start, f"no end within {seconds:.0f} s")
        leave(START_AGAIN)

    timer = threading.Timer(seconds, expired)
    timer.daemon = True
    timer.start()
    return timer


def leave(status: int) -> None:
    """End the process at once, whatever its other threads do; what they broke ends with it."""
    sys.stdout.flush()
    os._exit(status)


def device_works() -> bool:
    """Whether this process can still use the GPU."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage. Returns 0: what failed is in the record."""
    args = _parser().parse_args(argv)
    stage = Stage(
        record=Record(Path(args.rows)),
        out=Path(args.out),
        device=args.device,
        end=time.monotonic() + args.seconds,
        quick=args.quick,
        keep_build=args.keep_build,
        commit=args.commit,
        data=None if args.data is None else Path(args.data),
    )
    print(f"\n--- {args.name}", flush=True)
    units = importlib.import_module(f"benchmarks.gpu.stages.{args.name}").units
    run_units(list(units(stage)), stage, args.skip)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.stage", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep-build", action="store_true")
    parser.add_argument("--commit")
    parser.add_argument("--data")
    return parser


if __name__ == "__main__":
    # Through the module that the stages import: what they raise are its exceptions, not this script's. All is
    # on the disk by then, and threads that compilers leave behind would abort an orderly end.
    module = importlib.import_module("benchmarks.gpu.stage")
    module.leave(module.main())
