"""Suites: their cases in order, and the backends whose ops are also compared with float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.cases import (
    QUICK_SIZES,
    RANDOM_FRAMES,
    TUTORIAL_BATCH,
    TUTORIAL_STEPS,
    Case,
    full_batch,
    jsb_epoch,
    quick_case,
    svi_step,
)
from benchmarks.machine import cpu_count

SCALING_IMPLEMENTATIONS = ("tutorial", "tutorial mended", "PyTorch, hand-written backward", "dmm_fast")
FLOW_IMPLEMENTATIONS = ("tutorial", "dmm_fast", "dmm_fast, SequenceELBO", "dmm_fast, a site a time step")
TOO_LONG = "the backward of its slices is O(B T^2)"


@dataclass(frozen=True)
class Suite:
    """A suite of cases.

    Attributes:
        cases: makes the cases from a file of chorales (or None) and a flag for quick runs.
        errors_of: backends whose errors against float64 are measured.
    """

    cases: Callable[[Path | None, bool], list[Case]]
    errors_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Sizes of the scaling suite: from ``(batch, steps)`` along one axis at a time.

    A larger case is too expensive to be checked itself, three times in float64. It is checked on two
    smaller cases: all rows with ``check_steps`` steps, and one row with all steps. The unmodified tutorial is
    skipped beyond ``longest`` steps.
    """

    batch: int = TUTORIAL_BATCH
    steps: int = TUTORIAL_STEPS
    batches: tuple[int, ...] = (1, 4, 64, 229)
    lengths: tuple[int, ...] = (64, 512, 2048)
    check_steps: int = 8
    longest: int = 512


QUICK_SWEEP = Sweep(batch=2, steps=4, batches=(1, 5), lengths=(3, 9), check_steps=2, longest=4)


def sweep_case(sweep: Sweep, B: int, T: int, threads: int | None, along: dict[str, int]) -> Case:
    """An SVI step of the scaling suite, with fewer rounds for larger sizes."""
    size = B * T / (sweep.batch * sweep.steps)
    case = Case(
        name=f"SVI step, B={B}, T={T}, all full" + (f", threads={threads}" if threads else ""),
        batches=(full_batch(B, T),),
        data=RANDOM_FRAMES,
        rounds=9 if size <= 1 else 5 if size <= 4 else 3,
        warmup=2 if size <= 1 else 1,
        threads=threads,
        implementations=SCALING_IMPLEMENTATIONS,
        not_run={} if sweep.longest >= T else {"tutorial": TOO_LONG},
        along=along,
    )
    return case if size <= 1 else checked_on(case, (B, sweep.check_steps), (1, T))


def thread_counts(cpus: int) -> list[int]:
    """Powers of two below ``cpus``, and ``cpus``."""
    return [*(2**k for k in range((cpus - 1).bit_length())), cpus]


def scaling(sweep: Sweep, threads: int, cpus: int) -> list[Case]:
    """Every case of the sweep; the point common to its axes is a single case."""
    B, T = sweep.batch, sweep.steps
    meeting = sweep_case(sweep, B, T, threads, {"B": B, "T": T, "threads": threads})
    by_batch = [sweep_case(sweep, b, T, threads, {"B": b}) for b in sweep.batches]
    by_length = [sweep_case(sweep, B, t, threads, {"T": t}) for t in sweep.lengths]
    others = [n for n in thread_counts(cpus) if n != threads]
    by_threads = [sweep_case(sweep, B, T, n, {"threads": n}) for n in others]
    return [meeting, *by_batch, *by_length, *by_threads]


def checked_on(case: Case, *sizes: tuple[int, int]) -> Case:
    """``case``, to be checked on smaller cases of sizes ``(B, T)`` in place of itself."""
    check_cases = tuple(
        replace(case, name=f"B={B}, T={T} for {case.name}", batches=(full_batch(B, T),)) for B, T in sizes
    )
    return replace(case, check_cases=check_cases)


def _cpu(path: Path | None, quick: bool) -> list[Case]:
    return [
        svi_step(TUTORIAL_BATCH, TUTORIAL_STEPS, rounds=15, quick=quick),
        jsb_epoch(path, rounds=5, quick=quick),
    ]


def _cpu_long(path: Path | None, quick: bool) -> list[Case]:
    return [svi_step(TUTORIAL_BATCH, 512, rounds=5, quick=quick)]


def _cpu_scaling(path: Path | None, quick: bool) -> list[Case]:
    cpus = cpu_count()
    steps = scaling(QUICK_SWEEP if quick else Sweep(), torch.get_num_threads(), cpus)
    epoch = jsb_epoch(path, rounds=3, quick=quick)
    epochs = [
        replace(epoch, name=f"{epoch.name}, threads={n}", threads=n, implementations=SCALING_IMPLEMENTATIONS)
        for n in thread_counts(cpus)
    ]
    return [*(quick_case(case) if quick else case for case in steps), *epochs]


def _cpu_flows(path: Path | None, quick: bool) -> list[Case]:
    """Steps without flows, with one and with two; with two the tutorial takes ten seconds per step."""
    step = svi_step(TUTORIAL_BATCH, TUTORIAL_STEPS, rounds=5, quick=quick)
    cases = []
    for flows in (0, 1, 2):
        sizes = {**(QUICK_SIZES if quick else {}), "num_iafs": flows, "iaf_dim": 8 if quick else 100}
        case = replace(
            step,
            name=f"{step.name}, {flows} flows",
            rounds=15 if flows == 0 else step.rounds,
            warmup=1,
            sizes=sizes,
            implementations=FLOW_IMPLEMENTATIONS,
        )
        smaller = replace(case, name=f"B=3, T=6 for {case.name}", batches=(full_batch(3, 6),))
        cases.append(replace(case, check_cases=(smaller,)))
    return cases


SUITES = {
    "cpu": Suite(_cpu, errors_of=("cpp",)),
    "cpu-long": Suite(_cpu_long),
    "cpu-flows": Suite(_cpu_flows),
    "cpu-scaling": Suite(_cpu_scaling),
}
