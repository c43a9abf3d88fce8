"""Interleaved timing: A B A B ... in one process, so that drift of the machine affects all alike."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class Timed:
    """The timed function of an implementation; entering and leaving ``context`` is not timed."""

    step: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Samples:
    """Durations of one implementation in milliseconds, in the order of the rounds."""

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
    """A speed-up, taken round by round, so that drift of the machine cancels."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The fields of a results row."""
        return {"median": self.median, "low": self.low, "high": self.high}


def time_interleaved(
    implementations: Mapping[str, Timed],
    *,
    warmup: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
    at_least: float = 0.0,
    warm_after: float = math.inf,
) -> dict[str, Samples]:
    """Run every implementation once per round, in the same order, and time each run.

    Args:
        implementations: timed functions by name.
        warmup: rounds at the start whose times are discarded.
        rounds: timed rounds.
        clock: returns seconds.
        synchronize: waits for a device; called before each reading of the clock.
        at_least: an implementation that takes fewer seconds in the last warm-up round is run several times
            per round, and the mean is recorded.
        warm_after: an implementation that takes more seconds in a warm-up round skips the remaining ones.

    Raises:
        ValueError: ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    wait = synchronize or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    runs, warm = dict.fromkeys(implementations, 1), set[str]()
    for round_number in range(warmup + rounds):
        for name, implementation in implementations.items():
            if round_number < warmup and name in warm:
                continue
            with implementation.context():
                wait()
                start = clock()
                for _ in range(runs[name]):
                    implementation.step()
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
    """A warning if other processes compete for the processors to be timed on, else None.

    ``load`` is the one-minute load average before the run, ``threads`` the number the run will use.
    """
    if load + threads <= cpus + 0.5:
        return None
    return (
        f"load average {load:.2f} before the start, {threads} threads wanted, {cpus} processors: "
        "times are unreliable"
    )


def load_average() -> float:
    """The one-minute load average of this machine."""
    return os.getloadavg()[0]
