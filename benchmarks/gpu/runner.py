"""The stages of a run, one after another in a worker process that is replaced when a unit breaks it.

Nothing here imports torch: where that fails, it is the error of a stage like any other.
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

# Where the units of each stage are listed (module and function in benchmarks.gpu.stages), and its seconds
# when it is asked for by name.
STAGES: dict[str, tuple[str, float]] = {
    "machine": ("machine.units", 15),
    "smoke": ("smoke.units", 20),
    "kernels": ("kernels.units", 40),
    "errors": ("errors.units", 30),
    "replays": ("replays.units", 30),
    "race": ("steps.race_units", 90),
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
    "ceilings": ("ceilings.units", 20),
    "rowwise": ("rowwise.units", 100),
}

# Whole runs of at most BUDGET seconds: the first says what is right and where the time goes, the second
# measures what has been mended since. None of their stages runs nvcc, JAX, inductor or a sanitizer.
BUDGET = 300.0
FIRST = "machine=5 smoke=20 kernels=50 errors=25 replays=15 race=45 guides=15 scans=20 tests=100"
SECOND = "machine=5 smoke=20 kernels=50 replays=15 race=45 guides=15 training=100 tiles=30 tests=15"
PRESETS = {
    preset: {name: float(seconds) for name, _, seconds in (word.partition("=") for word in words.split())}
    for preset, words in (("first", FIRST), ("second", SECOND))
}

# A worker ends with this status when it should be replaced by a new one, which continues after the last unit.
START_AGAIN = 75
# A worker has this many seconds beyond its limit to notice it.
GRACE = 5.0
# A worker is not started for less.
LEAST = 3.0


@dataclass(frozen=True)
class Options:
    """Settings that all stages of a run share. ``stages`` are their budgets in seconds, ``end`` is the end of
    the run on the clock of ``time.monotonic()``.
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
        """The findings so far."""
        return Record(self.out / "rows.jsonl")

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def write_results(self) -> dict[str, Any]:
        """Write the results so far, and return them."""
        results = self.record.results(self.suite, self.stages)
        write(results, self.out / "results.json")
        return results


def share(name: str, seconds: dict[str, float], left: float) -> float:
    """The seconds that stage ``name`` gets of those left.

    Budgets shrink in proportion where they exceed the time left. Where more is left, the last stage of
    several takes all of it, and no other gets more than its own.
    """
    names = list(seconds)
    if len(names) > 1 and name == names[-1]:
        return left
    wanted = sum(seconds[later] for later in names[names.index(name) :])
    return seconds[name] * min(1.0, left / wanted) if wanted else 0.0


def run_stages(budget: float, options: Options) -> dict[str, Any]:
    """Run the stages in their order, ``budget`` seconds in all, and return the results.

    Raises:
        FileExistsError: the folder holds results already.
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
    """Run one worker; whether another should continue."""
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
    """Record the end of a worker that could not do so itself; a fault of a kernel, say."""
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
    told = json.dumps(asdict(options), default=str)
    return [sys.executable, "-u", "-m", "benchmarks.gpu.stage", told]
