"""What a suite runs: its cases, in order, and the backends whose ops are held to float64 beside them."""

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

SCALING_CONTESTANTS = ("tutorial", "tutorial mended", "PyTorch, hand-written backward", "dmm_fast")
FLOW_CONTESTANTS = ("tutorial", "dmm_fast", "dmm_fast, SequenceELBO", "dmm_fast, a site a time step")
TOO_LONG = "the backward of its slices is O(B T^2)"


@dataclass(frozen=True)
class Suite:
    """``cases`` makes them from a file of chorales and whether the run is a quick one."""

    cases: Callable[[Path | None, bool], list[Case]]
    errors_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Sizes of the scaling suite: from ``(batch, steps)`` along one axis at a time.

    A case larger than that point is too dear to be checked itself, in float64 and three times over. It
    is checked in two halves: with all its rows and ``gate_steps`` steps, and with one row and all its
    steps. Beyond ``longest`` steps the tutorial as it is does not run.
    """

    batch: int = TUTORIAL_BATCH
    steps: int = TUTORIAL_STEPS
    batches: tuple[int, ...] = (1, 4, 64, 229)
    lengths: tuple[int, ...] = (64, 512, 2048)
    gate_steps: int = 8
    longest: int = 512


QUICK_SWEEP = Sweep(batch=2, steps=4, batches=(1, 5), lengths=(3, 9), gate_steps=2, longest=4)


def sweep_case(sweep: Sweep, B: int, T: int, threads: int | None, along: dict[str, int]) -> Case:
    """An SVI step of the scaling suite: the larger, the fewer rounds. None leaves the threads as they are."""
    size = B * T / (sweep.batch * sweep.steps)
    case = Case(
        name=f"SVI step, B={B}, T={T}, all full" + (f", threads={threads}" if threads else ""),
        batches=(full_batch(B, T),),
        data=RANDOM_FRAMES,
        rounds=9 if size <= 1 else 5 if size <= 4 else 3,
        warmup=2 if size <= 1 else 1,
        threads=threads,
        contestants=SCALING_CONTESTANTS,
        not_run={} if sweep.longest >= T else {"tutorial": TOO_LONG},
        along=along,
    )
    return case if size <= 1 else checked_on(case, (B, sweep.gate_steps), (1, T))


def thread_counts(cpus: int) -> list[int]:
    """Powers of two below ``cpus``, and ``cpus``."""
    return [*(2**k for k in range((cpus - 1).bit_length())), cpus]


def scaling(sweep: Sweep, threads: int, cpus: int) -> list[Case]:
    """Every case of the sweep; the point where its axes meet comes once, and belongs to all three."""
    B, T = sweep.batch, sweep.steps
    meeting = sweep_case(sweep, B, T, threads, {"B": B, "T": T, "threads": threads})
    by_batch = [sweep_case(sweep, b, T, threads, {"B": b}) for b in sweep.batches]
    by_length = [sweep_case(sweep, B, t, threads, {"T": t}) for t in sweep.lengths]
    others = [n for n in thread_counts(cpus) if n != threads]
    by_threads = [sweep_case(sweep, B, T, n, {"threads": n}) for n in others]
    return [meeting, *by_batch, *by_length, *by_threads]


def checked_on(case: Case, *sizes: tuple[int, int]) -> Case:
    """``case``, checked on smaller ones of these ``B, T`` in its place."""
    gate = tuple(
        replace(case, name=f"B={B}, T={T} for {case.name}", batches=(full_batch(B, T),)) for B, T in sizes
    )
    return replace(case, gate=gate)


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
        replace(epoch, name=f"{epoch.name}, threads={n}", threads=n, contestants=SCALING_CONTESTANTS)
        for n in thread_counts(cpus)
    ]
    return [*(quick_case(case) if quick else case for case in steps), *epochs]


def _cpu_flows(path: Path | None, quick: bool) -> list[Case]:
    """Without flows, with one and with two; the tutorial takes ten seconds a step with two."""
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
            contestants=FLOW_CONTESTANTS,
        )
        smaller = replace(case, name=f"B=3, T=6 for {case.name}", batches=(full_batch(3, 6),))
        cases.append(replace(case, gate=(smaller,)))
    return cases


SUITES = {
    "cpu": Suite(_cpu, errors_of=("cpp",)),
    "cpu-long": Suite(_cpu_long),
    "cpu-flows": Suite(_cpu_flows),
    "cpu-scaling": Suite(_cpu_scaling),
}
