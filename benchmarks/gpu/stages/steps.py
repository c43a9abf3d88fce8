"""SVI steps and an epoch, all checked against the tutorial, then timed in turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS, Case, data_file, jsb_epoch, svi_step
from benchmarks.contestants import (
    BASELINE,
    CAPTURABLE,
    COMPILED,
    COMPILED_GRAPHED,
    EVERY_OURS,
    JAX,
    MENDED,
    OURS,
    peers_on,
)
from benchmarks.gpu.race import admissions, race, replays
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import TF32
from benchmarks.racer import JAX_NAME, Contestant
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

# What is compiled for each size by itself runs at the tutorial's alone.
COMPILED_PEERS: tuple[Contestant, ...] = (COMPILED, COMPILED_GRAPHED)
# In float32 all of a case have to minimise the same loss.
LEFT_OUT_OF_LARGER = (BASELINE, OURS[1], CAPTURABLE, *COMPILED_PEERS, *JAX)
ANEW = "compiling for each size or precision takes minutes"
TOO_LONG = "checked and timed up to T=512: minutes beyond"
TOO_SLOW = "compiling takes longer than all else of a quick run"


def units(stage: Stage) -> Iterator[Unit]:
    """Who can take part; what is promised; then larger sizes."""
    case = tutorial_case(stage)
    peers, left_out = peers_on(case.device)
    if stage.quick:
        peers = tuple(peer for peer in peers if peer is not COMPILED)
        left_out |= {COMPILED.name: TOO_SLOW}
    everyone = [BASELINE, MENDED, *peers, *EVERY_OURS]
    larger = () if stage.quick else LARGER
    yield Unit("who is left out", partial(name_left_out, stage, left_out, larger))
    # JAX's client last: where it hangs, nobody waits behind it.
    yield from admissions(stage, case, sorted(everyone, key=lambda c: c.name == JAX_NAME), NAMES)
    yield from replays(stage, case, NAMES)
    yield Unit(case.name, partial(race, stage, STEP, case, everyone, NAMES), RACE_SECONDS)
    few = [c for c in everyone if c not in (MENDED, *JAX)]
    yield Unit("epoch", partial(race_epoch, stage, few), RACE_SECONDS)
    tf32 = replace(case, name=f"{case.name}, tf32", precision=TF32)
    few = [c for c in everyone if c not in COMPILED_PEERS]
    yield Unit(tf32.name, partial(race, stage, STEP, tf32, few, NAMES), RACE_SECONDS)
    few = [c for c in everyone if c not in LEFT_OUT_OF_LARGER]
    for rows, steps in larger:
        yield Unit(f"B={rows}, T={steps}", partial(race_larger, stage, rows, steps, few), RACE_SECONDS)


def tutorial_case(stage: Stage) -> Case:
    """One step at the tutorial's size."""
    case = svi_step(B, T, rounds=9, quick=stage.quick)
    return replace(case, along={"B": B, "T": T}).to(torch.device(stage.device))


def race_epoch(stage: Stage, contestants: Sequence[Contestant]) -> None:
    """An epoch of chorales."""
    case = jsb_epoch(data_file(stage.data), rounds=3, quick=stage.quick).to(torch.device(stage.device))
    race(stage, EPOCH, case, contestants, NAMES)


def race_larger(stage: Stage, rows: int, steps: int, contestants: Sequence[Contestant]) -> None:
    """A step of another size."""
    able = [c for c in contestants if c is not MENDED or steps <= LONGEST]
    race(stage, STEP, larger_case(rows, steps).to(torch.device(stage.device)), able, NAMES)


def larger_case(rows: int, steps: int) -> Case:
    """A step of another size; too large to be checked itself, it is checked in two halves."""
    axis, size = ("T", steps) if rows == B else ("B", rows)
    case = replace(svi_step(rows, steps, rounds=5, quick=False), along={axis: size})
    if rows * steps <= B * T:
        return case
    return checked_on(case, (rows, GATE_STEPS), (1, min(steps, LONGEST)))


def name_left_out(stage: Stage, left_out: Mapping[str, str], larger: Sequence[tuple[int, int]]) -> None:
    """Who does not run here, and who not in which cases."""
    for name, why in left_out.items():
        stage.record.not_run("all", name, why)
    for peer in (*COMPILED_PEERS, *JAX) if larger else ():
        where = "an epoch and other sizes" if peer in JAX else "other sizes and tf32"
        stage.record.not_run(where, peer.name, ANEW)
    for rows, steps in larger:
        if steps > LONGEST:
            stage.record.not_run(larger_case(rows, steps).name, MENDED.name, TOO_LONG)
