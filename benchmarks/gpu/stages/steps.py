"""SVI steps and an epoch: every implementation checked against the tutorial, then all timed in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS, Case, data_file, jsb_epoch, svi_step
from benchmarks.contestants import (
    BASELINE,
    BATCHED,
    BATCHED_GRAPHED,
    CAPTURABLE,
    COMPILED,
    COMPILED_GRAPHED,
    EVERY_OURS,
    GRAPHED,
    JAX,
    MENDED,
    OURS,
    PEERS,
    peers_on,
)
from benchmarks.gpu.race import admissions, race, replays
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import TF32
from benchmarks.racer import Contestant
from benchmarks.suites import checked_on

STEP, EPOCH = "svi_step", "epoch"
NAMES = {c.name for c in EVERY_OURS}
# The larger cases by rising cost, as the time may end. Of the tutorial only the mended one takes part: its
# time grows as B T. Beyond LONGEST steps even that takes too long, to be timed or to be checked against.
B, T, LONGEST = TUTORIAL_BATCH, TUTORIAL_STEPS, 512
LARGER = ((1, T), (4, T), (64, T), (256, T), (1024, T), (B, 32), (B, LONGEST), (B, 2048))
GATE_STEPS = 8
# More than a stage has: a race that meets its end is cut off there, and those behind it are named.
RACE_SECONDS = 600.0
# Implementations that replay a CUDA graph, beside those whose steps they replay.
REPLAYING = (CAPTURABLE, GRAPHED, BATCHED, BATCHED_GRAPHED)
EVERYONE: tuple[Contestant, ...] = (
    BASELINE,
    MENDED,
    *(peer for peer in PEERS if peer not in JAX),
    BATCHED_GRAPHED,
    *EVERY_OURS,
)
TOO_LONG = "checked and timed up to T=512: minutes beyond"


def replay_units(stage: Stage, case: Case) -> Iterator[Unit]:
    """Steps from a graph beside the same steps as they come."""
    able = _able(stage, case, REPLAYING)
    yield from admissions(stage, case, able, NAMES)
    yield from replays(stage, case, able, NAMES)


def race_units(stage: Stage) -> Iterator[Unit]:
    """One step at the tutorial's size, without what has to be compiled for minutes."""
    yield from _race(stage, EVERYONE, tutorial_case(stage))


def peer_units(stage: Stage) -> Iterator[Unit]:
    """The same with the peers that compile: torch.compile, also in a graph, and JAX."""
    # JAX's client last: if it hangs, nothing waits behind it.
    peers: list[Contestant] = [COMPILED, *([] if stage.quick else [COMPILED_GRAPHED]), *JAX]
    yield from _race(stage, (BASELINE, BATCHED, CAPTURABLE, GRAPHED, *OURS, *peers), tutorial_case(stage))


def epoch_units(stage: Stage) -> Iterator[Unit]:
    """An epoch of chorales."""
    case = jsb_epoch(data_file(stage.data), rounds=3, quick=stage.quick)
    case = case.to(torch.device(stage.device))
    everyone = [c for c in EVERYONE if c is not MENDED]
    yield from admissions(stage, tutorial_case(stage), _able(stage, case, everyone), NAMES)
    yield Unit("epoch", partial(race, stage, EPOCH, case, everyone, NAMES), RACE_SECONDS)


def size_units(stage: Stage) -> Iterator[Unit]:
    """The tutorial's size in TF32, then other sizes."""
    case = tutorial_case(stage)
    tf32 = replace(case, name=f"{case.name}, tf32", precision=TF32)
    yield from admissions(stage, case, _able(stage, case, EVERYONE), NAMES)
    yield Unit(tf32.name, partial(race, stage, STEP, tf32, EVERYONE, NAMES), RACE_SECONDS)
    # In float32 all of a case have to minimise the same loss.
    few = [c for c in EVERYONE if c not in (BASELINE, OURS[1], CAPTURABLE)]
    for rows, steps in () if stage.quick else LARGER:
        yield Unit(f"B={rows}, T={steps}", partial(race_larger, stage, rows, steps, few), RACE_SECONDS)


def _race(stage: Stage, contestants: Sequence[Contestant], case: Case) -> Iterator[Unit]:
    able = _able(stage, case, contestants)
    yield from admissions(stage, case, able, NAMES)
    yield from replays(stage, case, able, NAMES)
    yield Unit(case.name, partial(race, stage, STEP, case, able, NAMES), RACE_SECONDS)


def _able(stage: Stage, case: Case, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those that can run on the device; the others are recorded once."""
    _, why = peers_on(case.device)
    known = {(row["case"], row["impl"]) for row in stage.record.found("not_run")}
    for contestant in contestants:
        if contestant.name in why and ("all", contestant.name) not in known:
            stage.record.not_run("all", contestant.name, why[contestant.name])
    return [c for c in contestants if c.name not in why]


def tutorial_case(stage: Stage) -> Case:
    """One step at the tutorial's size."""
    case = svi_step(B, T, rounds=9, quick=stage.quick)
    return replace(case, along={"B": B, "T": T}).to(torch.device(stage.device))


def race_larger(stage: Stage, rows: int, steps: int, contestants: Sequence[Contestant]) -> None:
    """A step of another size."""
    able = [c for c in contestants if c is not MENDED or steps <= LONGEST]
    case = larger_case(rows, steps).to(torch.device(stage.device))
    if steps > LONGEST:
        stage.record.not_run(case.name, MENDED.name, TOO_LONG)
    race(stage, STEP, case, able, NAMES)


def larger_case(rows: int, steps: int) -> Case:
    """A step of another size; too large to be checked itself, it is checked in two halves."""
    axis, size = ("T", steps) if rows == B else ("B", rows)
    case = replace(svi_step(rows, steps, rounds=5, quick=False), along={axis: size})
    if rows * steps <= B * T:
        return case
    return checked_on(case, (rows, GATE_STEPS), (1, min(steps, LONGEST)))
