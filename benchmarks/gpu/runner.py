"""Runner of the stages, in sequence in a worker process that is replaced if a unit breaks it.

This module does not import torch, so that a broken torch is reported as the error of a stage.
"""

import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.commands import run
from benchmarks.gpu.record import Record, of_kind, write
from benchmarks.gpu.triton_cache import ARCHIVE, pack, unpack

# The function in benchmarks.gpu.stages that lists the units of each stage, and the time budget of the stage
# in seconds if it is selected by --only.
STAGES: dict[str, tuple[str, float]] = {
    "machine": ("machine.units", 15),
    "smoke": ("smoke.units", 20),
    "kernels": ("kernels.units", 40),
    "errors": ("errors.units", 30),
    "replays": ("replays.units", 30),
    "svi_step": ("steps.step_units", 90),
    "tests": ("tests.units", 80),
    "scans": ("scans.units", 55),
    "scan_sizes": ("scans.size_units", 60),
    "epoch": ("steps.epoch_units", 30),
    "guides": ("guides.units", 40),
    "quality": ("quality.units", 60),
    "tiles": ("tiles.units", 60),
    "training": ("training.units", 150),
    "sizes": ("steps.size_units", 240),
    "peers": ("steps.peer_units", 300),
    "roofline": ("roofline.units", 20),
    "rowwise": ("rowwise.units", 100),
}

# Complete runs of at most BUDGET seconds: the first checks and profiles, the second measures after fixes.
# Their stages do not run nvcc, JAX, inductor or a sanitizer.
BUDGET = 300.0
FIRST = "machine=5 smoke=20 kernels=50 errors=25 replays=15 svi_step=45 guides=15 scans=20 tests=100"
SECOND = "machine=5 smoke=20 kernels=50 replays=15 svi_step=45 guides=15 training=100 tiles=30 tests=15"
PRESETS = {
    preset: {name: float(seconds) for name, _, seconds in (word.partition("=") for word in words.split())}
    for preset, words in (("first", FIRST), ("second", SECOND))
}

# Exit status of a worker that should be replaced by a new one, which continues after the last unit.
START_AGAIN = 75
# Seconds beyond its limit after which a worker is killed.
GRACE = 5.0
# Fewest seconds left for which a worker is started.
LEAST = 3.0


@dataclass(frozen=True)
class Options:
    """Settings shared by all stages of a run.

    ``stages`` has their time budgets in seconds; ``end`` is the end of the run in seconds of
    ``time.monotonic()``.
    """

    out: Path
    stages: dict[str, float] = field(default_factory=dict)
    suite: str = "gpu"
    device: str = "cuda"
    quick: bool = False
    commit: str | None = None
    data: str | None = None
    plugin: str | None = None
    triton_cache: str | None = None
    end: float = math.inf

    @cached_property
    def record(self) -> Record:
        """The record of findings."""
        return Record(self.out / "rows.jsonl")

    def left(self) -> float:
        """Seconds left until the end."""
        return self.end - time.monotonic()

    def write_results(self) -> dict[str, Any]:
        """Write and return the results so far."""
        results = self.record.results(self.suite, self.stages)
        write(results, self.out / "results.json")
        return results


def share(name: str, seconds: dict[str, float], left: float) -> float:
    """The time budget of stage ``name`` in seconds, given the seconds ``left``.

    If the budgets of the remaining stages exceed the time left, they are scaled down proportionally.
    Otherwise a stage gets its own budget, and the last of several stages gets all the time left.
    """
    names = list(seconds)
    if len(names) > 1 and name == names[-1]:
        return left
    wanted = sum(seconds[later] for later in names[names.index(name) :])
    return seconds[name] * min(1.0, left / wanted) if wanted else 0.0


def run_stages(budget: float, options: Options) -> dict[str, Any]:
    """Run the stages in order, within ``budget`` seconds, and return the results.

    Raises:
        FileExistsError: the folder holds results of an earlier run.
    """
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    options = replace(options, out=out, end=time.monotonic() + budget - GRACE)
    if options.record.everything():
        raise FileExistsError(f"out: expected a folder without results, got {out}")
    cache = out / "triton-cache"
    cache.mkdir(exist_ok=True)
    try:
        if options.triton_cache:
            unpack(options.triton_cache, cache)
        while _run_worker(options, {**os.environ, "TRITON_CACHE_DIR": str(cache)}):
            pass
    finally:
        results = options.write_results()
        if any(cache.iterdir()):
            pack(cache, out / ARCHIVE)
        shutil.rmtree(cache)
    return results


def _run_worker(options: Options, env: dict[str, str]) -> bool:
    """Run one worker; returns True if another should continue after it."""
    if options.left() < LEAST:
        return False
    done, log = len(options.record.everything()), options.out / "stages.log"
    ended = run(_command(options), options.left() + GRACE, env=env, log=log, own_group=True, interrupt=0.0)
    if ended.status == 0:
        return False
    if ended.status != START_AGAIN:
        _record_end(ended.describe(), options)
    return ended.status is not None and len(options.record.everything()) > done


def _record_end(why: str, options: Options) -> None:
    """Record the end of a worker that crashed, for example by a fault in a kernel."""
    rows = options.record.everything()
    begun, finished = (of_kind(rows, kind) for kind in ("begun", "unit"))
    if len(begun) > len(finished):
        return options.record.unit(begun[-1]["unit"], 0.0, why)
    for name in options.stages:
        if not of_kind(options.record.of_stage(name), "stage_ended"):
            options.record.add("stage_begun", {"name": name})
            return options.record.add("stage_ended", {"error": why})
    return None


def _command(options: Options) -> list[str]:
    encoded = json.dumps(asdict(options), default=str)
    return [sys.executable, "-u", "-m", "benchmarks.gpu.stage", encoded]
