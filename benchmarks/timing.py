"""Timing in turn: A B A B .. in one process, so that a slow minute hits all alike."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class Timed:
    """One contestant: ``step`` is timed, ``context`` is entered and left off the clock."""

    step: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Samples:
    """Durations of one contestant in milliseconds, in the order of the rounds."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median duration."""
        return statistics.median(self.ms)

    def as_dict(self) -> dict[str, float | int]:
        """The fields of a results row."""
        return {
            "median_ms": self.median,
            "min_ms": min(self.ms),
            "max_ms": max(self.ms),
            "n": len(self.ms),
        }


@dataclass(frozen=True)
class Ratio:
    """How many times faster, taken round by round, so that drift of the machine cancels."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The fields of a results row."""
        return {"median": self.median, "low": self.low, "high": self.high}


def time_in_turn(
    contestants: Mapping[str, Timed],
    *,
    warmup: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
    at_least: float = 0.0,
    warm_after: float = math.inf,
) -> dict[str, Samples]:
    """Run every contestant once a round, in the same order, and time each run.

    ``clock`` tells seconds. ``synchronize`` waits for a device: it is called before the clock is
    read, at the start and at the end of each run. The first ``warmup`` rounds are thrown away. Who
    takes less than ``at_least`` seconds in the last of them runs several times a round; the mean counts. Who
    takes more than ``warm_after`` in one of them sits out those that are left.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    runs, warm = dict.fromkeys(contestants, 1), set[str]()
    for round_number in range(warmup + rounds):
        for name, contestant in contestants.items():
            if round_number < warmup and name in warm:
                continue
            with contestant.context():
                wait()
                start = clock()
                for _ in range(runs[name]):
                    contestant.step()
                wait()
                elapsed = (clock() - start) / runs[name]
            if round_number >= warmup:
                seconds[name].append(elapsed)
            elif elapsed > warm_after:
                warm.add(name)
            elif round_number == warmup - 1 and 0 < elapsed < at_least:
                runs[name] = math.ceil(at_least / elapsed)
    return {name: Samples(tuple(1e3 * s for s in values)) for name, values in seconds.items()}


def paired_ratio(slow: Samples, fast: Samples) -> Ratio:
    """``slow / fast`` for each round: its median, lowest and highest."""
    ratios = [a / b for a, b in zip(slow.ms, fast.ms, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def load_warning(load: float, threads: int, cpus: int) -> str | None:
    """A sentence when other work wants the processors we are about to time on, else None.

    ``load`` is the one-minute load average before the run, ``threads`` what the run will use.
    """
    if load + threads <= cpus + 0.5:
        return None
    return (
        f"load average {load:.2f} before the start, {threads} threads wanted, {cpus} processors: "
        "times are not to be believed"
    )


def load_average() -> float:
    """The one-minute load average of this machine."""
    return os.getloadavg()[0]
