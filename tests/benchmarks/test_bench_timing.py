"""Interleaved timing, with a simulated clock."""

from contextlib import contextmanager

import pytest

from benchmarks.timing import Samples, Timed, load_warning, paired_ratio, time_interleaved


class Clock:
    """A clock that advances only when a worker runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Worker:
    """Advances the clock by the given seconds, an entry per call, and records its calls."""

    def __init__(self, name, clock, seconds, diary):
        self.name, self.clock, self.diary = name, clock, diary
        self.seconds = iter(seconds)

    def __call__(self):
        self.diary.append(self.name)
        self.clock.now += next(self.seconds)


def test_runs_are_interleaved_and_the_warm_up_is_discarded():
    clock, diary = Clock(), []
    a = Worker("a", clock, [9.0, 1.0, 2.0, 6.0], diary)
    b = Worker("b", clock, [9.0, 0.5, 0.5, 0.5], diary)
    samples = time_interleaved({"a": Timed(a), "b": Timed(b)}, warmup=1, rounds=3, clock=clock)
    assert diary == ["a", "b"] * 4
    assert samples["a"].ms == (1000.0, 2000.0, 6000.0)
    assert samples["a"].as_dict() == {"median_ms": 2e3, "min_ms": 1e3, "max_ms": 6e3, "n": 3}
    assert samples["b"].ms == (500.0, 500.0, 500.0)


def test_the_context_is_not_timed_and_the_device_is_synchronised():
    clock, diary = Clock(), []
    work = Worker("work", clock, [1.0], diary)

    @contextmanager
    def context():
        clock.now += 50.0
        diary.append("enter")
        yield
        clock.now += 50.0
        diary.append("leave")

    def synchronize():
        diary.append("wait")
        clock.now += 0.25

    samples = time_interleaved(
        {"a": Timed(work, context)}, warmup=0, rounds=1, clock=clock, synchronize=synchronize
    )
    assert diary == ["enter", "wait", "work", "wait", "leave"]
    # The second synchronisation belongs to the timed work, the first to earlier work.
    assert samples["a"].ms == (1250.0,)


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        time_interleaved({}, warmup=1, rounds=0)


def test_ratio_is_taken_round_by_round():
    # The machine was twice as slow in the last round, which does not affect the ratio.
    ratio = paired_ratio(Samples((6.0, 9.0, 12.0)), Samples((2.0, 1.0, 4.0)))
    assert ratio.as_dict() == {"median": 3.0, "low": 3.0, "high": 9.0}


def test_rounds_must_match():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio(Samples((1.0, 2.0)), Samples((1.0,)))


def test_load_warning():
    assert load_warning(0.1, threads=2, cpus=2) is None
    assert load_warning(1.4, threads=1, cpus=2) is None
    warning = load_warning(1.3, threads=2, cpus=2)
    assert warning is not None
    assert "load average 1.30" in warning


def test_short_runs_are_timed_several_at_once():
    clock, diary = Clock(), []
    # Warm-up rounds take 9 and 0.25 seconds, so 3 runs make at least 0.75; "long" is not repeated.
    short = Worker("short", clock, [9.0, 0.25, *[0.25, 0.5, 0.75], *[0.5] * 3], diary)
    long = Worker("long", clock, [1.0] * 4, diary)
    timed = {"short": Timed(short), "long": Timed(long)}
    samples = time_interleaved(timed, warmup=2, rounds=2, clock=clock, at_least=0.75)
    assert diary == ["short", "long"] * 2 + (["short"] * 3 + ["long"]) * 2
    assert samples["short"].ms == (500.0, 500.0)
    assert samples["long"].ms == (1000.0, 1000.0)


def test_a_slow_implementation_is_warmed_up_once():
    clock, diary = Clock(), []
    slow = Worker("slow", clock, [3.0, 2.0, 2.0], diary)
    quick = Worker("quick", clock, [1.0] * 4, diary)
    timed = {"slow": Timed(slow), "quick": Timed(quick)}
    samples = time_interleaved(timed, warmup=2, rounds=2, clock=clock, warm_after=2.5)
    assert diary == ["slow", "quick", "quick", "slow", "quick", "slow", "quick"]
    assert [sample.ms for sample in samples.values()] == [(2000.0, 2000.0), (1000.0, 1000.0)]
