"""One SVI step at the tutorial's size: all are checked against the tutorial, then timed in turn."""

from collections.abc import Iterator

import torch

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS, svi_step
from benchmarks.contestants import BASELINE, MENDED, OURS
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.peer_torch import TorchContestant
from benchmarks.run import run_case

ROUNDS = 9
WITHOUT_JAX = "its client is started on the CPU"


def units(stage: Stage) -> Iterator[Unit]:
    """The one case."""
    yield Unit("SVI step", lambda: step(stage), seconds=float("inf"))


def step(stage: Stage) -> None:
    """Losses and gradients first: without them agreeing nothing is timed."""
    device = torch.device(stage.device)
    # float32 means IEEE on both sides: left alone, cuDNN rounds the tutorial's recurrence to TF32.
    torch.backends.cudnn.allow_tf32 = False
    case = svi_step(TUTORIAL_BATCH, TUTORIAL_STEPS, rounds=ROUNDS, quick=stage.quick).to(device)
    contestants = (BASELINE, MENDED, TorchContestant(), *OURS)
    verdicts, rows = run_case("gpu-steps", case, contestants, device)
    for verdict in verdicts:
        stage.record.correctness(verdict.as_dict())
    for row in rows:
        stage.record.add("cases", row)
    stage.record.not_run(case.name, "JAX, jit + lax.scan", WITHOUT_JAX)
