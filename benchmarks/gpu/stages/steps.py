"""SVI steps and an epoch: every implementation checked against the tutorial, then all timed in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import Case, data_file, jsb_epoch, svi_step
from benchmarks.contestants import (
    BASELINE,
    BATCHED,
    BATCHED_GRAPHED,
    CAPTURABLE,
    COMPILED,
    COMPILED_GRAPHED,
    EVERY_OURS,
    GRAPHED,
    MENDED,
    OURS,
    OVERLAPPED,
    PEERS,
    jax_peers,
)
from benchmarks.gpu.race import admissions, race, replays
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import TF32
from benchmarks.racer import JAX_NAME, Contestant
from benchmarks.suites import Sweep, sweep_case

STEP, EPOCH = "svi_step", "epoch"
NAMES = {c.name for c in EVERY_OURS}
# Other sizes by rising cost, as the time may end. Of the tutorial the mended one takes part, whose time grows
# as B T, up to the longest sequences of the sweep.
SWEEP = Sweep(batches=(1, 4, 64, 256, 1024), lengths=(32, 512, 2048))
# More than a stage has: a race that meets its end is cut off there, and those behind it are named.
RACE_SECONDS = 600.0
# Implementations that replay a CUDA graph, beside those whose steps they replay.
REPLAYING = (CAPTURABLE, GRAPHED, OVERLAPPED, BATCHED, BATCHED_GRAPHED)
EVERYONE: tuple[Contestant, ...] = (BASELINE, MENDED, *PEERS, BATCHED_GRAPHED, *OURS, CAPTURABLE, GRAPHED)


def replay_units(stage: Stage) -> Iterator[Unit]:
    """Steps from a graph beside the same steps as they come."""
    yield from _prepared(stage, REPLAYING)


def race_units(stage: Stage) -> Iterator[Unit]:
    """A step at the tutorial's size, without the peers that are compiled for minutes."""
    yield from _race(stage, STEP, tutorial_case(stage), (*EVERYONE, OVERLAPPED))


def peer_units(stage: Stage) -> Iterator[Unit]:
    """The same with the peers that compile: torch.compile, also in a graph, and JAX."""
    jax, why_not = jax_peers()
    if why_not:
        stage.record.not_run("all", JAX_NAME, why_not)
    # JAX's client last: if it hangs, nothing waits behind it.
    peers: list[Contestant] = [COMPILED, *([] if stage.quick else [COMPILED_GRAPHED]), *jax]
    yield from _race(
        stage, STEP, tutorial_case(stage), (BASELINE, BATCHED, CAPTURABLE, GRAPHED, *OURS, *peers)
    )


def epoch_units(stage: Stage) -> Iterator[Unit]:
    """An epoch of chorales."""
    case = jsb_epoch(data_file(stage.data), rounds=3, quick=stage.quick).to(torch.device(stage.device))
    yield from _race(stage, EPOCH, case, [c for c in EVERYONE if c is not MENDED])


def size_units(stage: Stage) -> Iterator[Unit]:
    """The tutorial's size in TF32, then other sizes."""
    case = tutorial_case(stage)
    yield from _race(stage, STEP, replace(case, name=f"{case.name}, tf32", precision=TF32), EVERYONE)
    along = [*(("B", B) for B in SWEEP.batches), *(("T", T) for T in SWEEP.lengths)]
    for axis, size in () if stage.quick else along:
        B, T = (size, SWEEP.steps) if axis == "B" else (SWEEP.batch, size)
        case = sweep_case(SWEEP, B, T, None, {axis: size}).to(torch.device(stage.device))
        # In float32 all of a case have to minimise the same loss.
        without = (BASELINE, OURS[1], CAPTURABLE, *([MENDED] if SWEEP.longest < T else []))
        yield from _race(stage, STEP, case, [c for c in EVERYONE if c not in without])


def _race(stage: Stage, suite: str, case: Case, contestants: Sequence[Contestant]) -> Iterator[Unit]:
    yield from _prepared(stage, contestants)
    yield Unit(case.name, partial(race, stage, suite, case, contestants, NAMES), RACE_SECONDS)


def _prepared(stage: Stage, contestants: Sequence[Contestant]) -> Iterator[Unit]:
    case = tutorial_case(stage)
    yield from admissions(stage, case, contestants, NAMES)
    yield from replays(stage, case, contestants, NAMES)


def tutorial_case(stage: Stage) -> Case:
    """An SVI step at the tutorial's size."""
    case = svi_step(SWEEP.batch, SWEEP.steps, rounds=5, quick=stage.quick)
    return replace(case, along={"B": SWEEP.batch, "T": SWEEP.steps}).to(torch.device(stage.device))
