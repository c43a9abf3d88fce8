"""One SVI step at the tutorial's size: all are checked against the tutorial, then timed in turn."""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS, Case, svi_step
from benchmarks.contestants import BASELINE, CAPTURABLE, GRAPHED, MENDED, OURS
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.peer_torch import TorchContestant
from benchmarks.racer import Contestant
from benchmarks.replays import compare_replays
from benchmarks.run import run_case

ROUNDS = 9
WITHOUT_JAX = "its client is started on the CPU"


def units(stage: Stage) -> Iterator[Unit]:
    """The one case; and by itself, last, what may fail to be captured."""
    yield Unit("SVI step", lambda: step(stage), seconds=float("inf"))
    yield Unit("SVI step, graphed", lambda: step_graphed(stage), seconds=float("inf"))


def step(stage: Stage) -> None:
    """Losses and gradients first: without them agreeing nothing is timed."""
    case = _case(stage)
    _run(stage, case, (BASELINE, MENDED, TorchContestant(), *OURS))
    stage.record.not_run(case.name, "JAX, jit + lax.scan", WITHOUT_JAX)


def step_graphed(stage: Stage) -> None:
    """A step replayed from a CUDA graph, in turn with the same step as it comes; on a CPU they are one."""
    case = _case(stage)
    verdict = compare_replays(case, CAPTURABLE, GRAPHED)
    stage.record.correctness(verdict.as_dict())
    if verdict.ok:
        _run(stage, case, (CAPTURABLE, GRAPHED))
    else:
        stage.record.not_run(case.name, GRAPHED.name, "beyond its bound")


def _case(stage: Stage) -> Case:
    # float32 means IEEE on both sides: left alone, cuDNN rounds the tutorial's recurrence to TF32.
    torch.backends.cudnn.allow_tf32 = False
    case = svi_step(TUTORIAL_BATCH, TUTORIAL_STEPS, rounds=ROUNDS, quick=stage.quick)
    return case.to(torch.device(stage.device))


def _run(stage: Stage, case: Case, contestants: Sequence[Contestant]) -> None:
    verdicts, rows = run_case("gpu-steps", case, contestants, case.device)
    for verdict in verdicts:
        stage.record.correctness(verdict.as_dict())
    for row in rows:
        stage.record.add("cases", row)
