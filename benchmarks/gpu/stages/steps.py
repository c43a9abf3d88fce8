"""SVI steps and an epoch, all checked against the tutorial, then timed in turn; where a step's time goes."""

from collections.abc import Iterator, Mapping, Sequence
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
    MENDED,
    OURS,
    peers_on,
)
from benchmarks.gpu.profile import profiled
from benchmarks.gpu.race import ADMITTED, admissions, bar, race, starting_parameters
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import TF32, multiplied_in
from benchmarks.racer import Contestant
from benchmarks.replays import compare_replays
from benchmarks.suites import checked_on

STEP, EPOCH = "svi_step", "epoch"
NAMES = {c.name for c in EVERY_OURS}
# The larger cases by rising cost, as the time may end. Of the tutorial only the mended one takes part: its
# time grows as B T. Beyond LONGEST steps even that takes too long, to be timed or to be checked against.
B, T, LONGEST = TUTORIAL_BATCH, TUTORIAL_STEPS, 512
LARGER = ((1, T), (4, T), (64, T), (256, T), (1024, T), (B, 32), (B, LONGEST), (B, 2048))
GATE_STEPS = 8
TOO_LONG = "checked and timed up to T=512: minutes beyond"
TOO_SLOW = "compiling takes longer than all else of a quick run"
TRACE = "step.json.gz"
# In float32 all of a case have to minimise the same loss; and each size would be compiled anew.
COMPILED_PEERS = (COMPILED, COMPILED_GRAPHED)
LEFT_OUT_OF_LARGER = (BASELINE, OURS[1], CAPTURABLE, *COMPILED_PEERS)
ANEW = "compiling each size anew takes minutes"


def units(stage: Stage) -> Iterator[Unit]:
    """Who can take part; what is promised; then larger sizes."""
    case = _tutorial(stage)
    peers, left_out = peers_on(case.device)
    if stage.quick:
        peers = tuple(peer for peer in peers if peer is not COMPILED)
        left_out |= {COMPILED.name: TOO_SLOW}
    everyone = [BASELINE, MENDED, *peers, *EVERY_OURS]
    larger = () if stage.quick else LARGER
    yield Unit("who is left out", partial(name_left_out, stage, left_out, larger))
    yield from admissions(stage, case, everyone, NAMES)
    endless = float("inf")
    yield Unit("replays", partial(replays, stage, case))
    yield Unit(case.name, partial(race, stage, STEP, case, everyone, NAMES), endless)
    for contestant in (GRAPHED, OURS[0]):
        yield Unit(f"profile of {contestant.name}", partial(profile_step, stage, case, contestant), 60.0)
    epoch = jsb_epoch(data_file(stage.data), rounds=3, quick=stage.quick).to(case.device)
    few = [c for c in everyone if c is not MENDED]
    yield Unit(epoch.name, partial(race, stage, EPOCH, epoch, few, NAMES), endless)
    tf32 = replace(case, name=f"{case.name}, tf32", precision=TF32)
    yield Unit(tf32.name, partial(race, stage, STEP, tf32, everyone, NAMES), endless)
    for rows, steps in larger:
        able = [c for c in everyone if c not in LEFT_OUT_OF_LARGER]
        if steps > LONGEST:
            able.remove(MENDED)
        of_size = larger_case(rows, steps).to(case.device)
        yield Unit(of_size.name, partial(race, stage, STEP, of_size, able, NAMES), endless)


def name_left_out(stage: Stage, left_out: Mapping[str, str], larger: Sequence[tuple[int, int]]) -> None:
    """Who does not run here, and who not at which sizes."""
    for name, why in left_out.items():
        stage.record.not_run("all", name, why)
    for rows, steps in larger:
        name = larger_case(rows, steps).name
        for peer in COMPILED_PEERS:
            stage.record.not_run(name, peer.name, ANEW)
        if steps > LONGEST:
            stage.record.not_run(name, MENDED.name, TOO_LONG)


def larger_case(rows: int, steps: int) -> Case:
    """A step of another size; too large to be checked itself, it is checked in two halves."""
    axis, size = ("T", steps) if rows == B else ("B", rows)
    case = replace(svi_step(rows, steps, rounds=5, quick=False), along={axis: size}, warmup=1)
    if rows * steps <= B * T:
        return case
    return checked_on(case, (rows, GATE_STEPS), (1, min(steps, LONGEST)))


def replays(stage: Stage, case: Case) -> None:
    """Losses of steps replayed from a graph beside those of the same steps as they come.

    A peer whose are not the same is barred.
    """
    admitted = {row["impl"] for row in stage.record.found(ADMITTED)}
    for plain, replayed in ((CAPTURABLE, GRAPHED), (BATCHED, BATCHED_GRAPHED), (COMPILED, COMPILED_GRAPHED)):
        if not {plain.name, replayed.name} <= admitted:
            continue
        verdict = compare_replays(case, plain, replayed)
        if verdict.ok or replayed.name in NAMES:
            stage.record.correctness(verdict.as_dict())
        else:
            bar(stage, verdict)


def profile_step(stage: Stage, case: Case, contestant: Contestant) -> None:
    """Its kernels; the timeline of a step from a graph is kept whole."""
    if contestant.name not in {row["impl"] for row in stage.record.found(ADMITTED)}:
        return
    trace = stage.out / TRACE if contestant is GRAPHED else None
    with multiplied_in(case.precision):
        racer = contestant.setup(case, starting_parameters(case))
        with racer.active():
            racer.run()
            found = profiled(racer.run, stage.device, trace)
    stage.record.add("profiles", {"case": case.name, "impl": contestant.name, **found})


def _tutorial(stage: Stage) -> Case:
    case = svi_step(B, T, rounds=9, quick=stage.quick)
    return replace(case, along={"B": B, "T": T}).to(torch.device(stage.device))
