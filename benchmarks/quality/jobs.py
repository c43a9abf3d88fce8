"""The work on runs, in this process or in several."""

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine
from benchmarks.quality.journal import FINISHED, SIGNAL, Journal
from benchmarks.quality.runs import Run, until
from dmm_fast.data import Dataset
from dmm_fast.training import NonFiniteLossError, TrainConfig
from dmm_fast.training._config import TABLE_FIELDS
from dmm_fast.training._data import load_data
from dmm_fast.training._interrupt import StopSignals

FAILED, STOPPED = 1, 128 + signal.SIGINT
# Seconds between looks at the processes.
LOOK = 0.1


class Task(NamedTuple):
    """A run to be made: data, preset and seed."""

    source: Path
    preset: str
    seed: int


def run_of(args: argparse.Namespace, task: Task) -> Run:
    """The run of a task."""
    about = {name: value for name, value in args.overrides.items() if name in (*TABLE_FIELDS, "split_seed")}
    return Run(
        data=_loaded(task.source, frozenset(about.items())),
        source=task.source,
        preset=task.preset,
        seed=task.seed,
        overrides=args.overrides,
        work=args.work,
        out=args.out,
        cuda=args.cuda,
        particles=args.particles,
    )


@lru_cache
def _loaded(source: Path, settings: frozenset[tuple[str, Any]]) -> Dataset:
    return load_data(TrainConfig(data=str(source.resolve()), **dict(settings)))


def carry_out(args: argparse.Namespace, run: Run, stop: StopSignals) -> int:
    """Train and evaluate a run. Returns 0, 1 if that failed, or 130 after a signal."""
    try:
        return _carry_out(args, run, stop)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{run.name}: failed: {error}", file=sys.stderr, flush=True)
        return FAILED


def _carry_out(args: argparse.Namespace, run: Run, stop: StopSignals) -> int:
    if run.is_done():
        print(f"{run.standing()}; skipped", flush=True)
        return 0
    run.check_folder()
    meta = machine.meta(torch.device("cuda" if run.cuda else "cpu"), quick=False)
    failure = None
    if not args.evaluate_only and not run.is_trained():
        print(f"{run.name}: training", flush=True)
        try:
            if run.train(args.seconds, meta) == SIGNAL:
                print(f"{run.standing()}", flush=True)
                return STOPPED
        except NonFiniteLossError as error:
            if not run.best.exists():
                raise
            # The rest of the message names a file of this machine.
            failure = f"failed: {str(error).partition(';')[0]}"
    if not run.best.exists():
        print(f"{run.standing()}", flush=True)
        return 0
    ended = failure or Journal(run.folder).ended
    over = until(args.seconds)
    nll = args.evaluate_only or ended in FINISHED
    is_complete = run.evaluate(nll=nll, stopped=lambda: stop.received is not None or over())
    run.write(ended, meta)
    print(f"{run.standing()}{'' if is_complete else '; evaluation to be continued'}", flush=True)
    if failure:
        print(f"{run.name}: {failure}", file=sys.stderr, flush=True)
    return STOPPED if stop.received else FAILED if failure else 0


def in_processes(args: argparse.Namespace, tasks: Sequence[Task], stop: StopSignals) -> int:
    """Carry out each task in a process of its own, ``args.jobs`` at a time; signals are passed on to them."""
    # Spawned, because a process that has used threads must not be forked.
    context = multiprocessing.get_context("spawn")
    waiting, codes = list(tasks), []
    active: list[SpawnProcess] = []
    while active or (waiting and not stop.received):
        while waiting and len(active) < args.jobs and not stop.received:
            process = context.Process(target=in_process, args=(args, waiting.pop(0)))
            process.start()
            active.append(process)
        time.sleep(LOOK)
        if stop.received:
            for process in active:
                process.terminate()
            for process in active:
                process.join()
        ended = [process for process in active if not process.is_alive()]
        codes += [process.exitcode for process in ended]
        active = [process for process in active if process not in ended]
    if stop.received is not None:
        return STOPPED
    return FAILED if any(codes) else 0


def in_process(args: argparse.Namespace, task: Task) -> None:
    """Carry out a task in a process of its own, whose exit status is that of :func:`carry_out`."""
    with StopSignals() as stop:
        torch.set_num_threads(args.threads)
        code = carry_out(args, run_of(args, task), stop)
    sys.exit(code)
