"""SVI steps and epochs: implementations are compared with the tutorial, then timed interleaved."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.cases import Case, data_file, jsb_epoch, svi_step
from benchmarks.gpu.interleaved import replays, support_checks, time_agreeing
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.implementations import (
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
from benchmarks.precision import TF32
from benchmarks.stepper import JAX_NAME, Implementation
from benchmarks.suites import Sweep, sweep_case

STEP, EPOCH = "svi_step", "epoch"
NAMES = {c.name for c in EVERY_OURS}
# Other sizes by rising cost, as the stage may run out of time. The baseline is the mended tutorial, whose
# time grows as B T, up to the longest sequences of the sweep.
SWEEP = Sweep(batches=(1, 4, 64, 256, 1024), lengths=(32, 512, 2048))
# More than the time of a stage: a timing that reaches its end is ended there without counting as failed.
TIMING_SECONDS = 600.0
# Implementations that replay a CUDA graph, and their eager counterparts.
REPLAYING = (CAPTURABLE, GRAPHED, OVERLAPPED, BATCHED, BATCHED_GRAPHED)
EVERYONE: tuple[Implementation, ...] = (BASELINE, MENDED, *PEERS, BATCHED_GRAPHED, *OURS, CAPTURABLE, GRAPHED)


def replay_units(stage: Stage) -> Iterator[Unit]:
    """Comparisons of replayed and eager steps."""
    yield from _prepared(stage, REPLAYING)


def step_units(stage: Stage) -> Iterator[Unit]:
    """A step at the tutorial's size, without the peers that take minutes to compile."""
    yield from _timed(stage, STEP, tutorial_case(stage), (*EVERYONE, OVERLAPPED))


def peer_units(stage: Stage) -> Iterator[Unit]:
    """The same step with the compiled peers: torch.compile, also in a graph, and JAX."""
    jax, why_not = jax_peers()
    if why_not:
        stage.record.not_run("all", JAX_NAME, why_not)
    # JAX comes last, as its client may hang.
    peers: list[Implementation] = [COMPILED, *([] if stage.quick else [COMPILED_GRAPHED]), *jax]
    yield from _timed(
        stage, STEP, tutorial_case(stage), (BASELINE, BATCHED, CAPTURABLE, GRAPHED, *OURS, *peers)
    )


def epoch_units(stage: Stage) -> Iterator[Unit]:
    """An epoch of chorales."""
    case = jsb_epoch(data_file(stage.data), rounds=3, quick=stage.quick).to(torch.device(stage.device))
    yield from _timed(stage, EPOCH, case, [c for c in EVERYONE if c is not MENDED])


def size_units(stage: Stage) -> Iterator[Unit]:
    """The tutorial's size in TF32, then other sizes."""
    case = tutorial_case(stage)
    yield from _timed(stage, STEP, replace(case, name=f"{case.name}, tf32", precision=TF32), EVERYONE)
    along = [*(("B", B) for B in SWEEP.batches), *(("T", T) for T in SWEEP.lengths)]
    for axis, size in () if stage.quick else along:
        B, T = (size, SWEEP.steps) if axis == "B" else (SWEEP.batch, size)
        case = sweep_case(SWEEP, B, T, None, {axis: size}).to(torch.device(stage.device))
        # The float32 comparison requires that all minimise the same loss.
        without = (BASELINE, OURS[1], CAPTURABLE, *([MENDED] if SWEEP.longest < T else []))
        yield from _timed(stage, STEP, case, [c for c in EVERYONE if c not in without])


def _timed(stage: Stage, suite: str, case: Case, implementations: Sequence[Implementation]) -> Iterator[Unit]:
    yield from _prepared(stage, implementations)
    yield Unit(case.name, partial(time_agreeing, stage, suite, case, implementations, NAMES), TIMING_SECONDS)


def _prepared(stage: Stage, implementations: Sequence[Implementation]) -> Iterator[Unit]:
    case = tutorial_case(stage)
    yield from support_checks(stage, case, implementations, NAMES)
    yield from replays(stage, case, implementations, NAMES)


def tutorial_case(stage: Stage) -> Case:
    """An SVI step at the tutorial's size."""
    case = svi_step(SWEEP.batch, SWEEP.steps, rounds=5, quick=stage.quick)
    return replace(case, along={"B": SWEEP.batch, "T": SWEEP.steps}).to(torch.device(stage.device))
