"""Train to the tutorial's test NLL, the tutorial itself beside it for the same wall time."""

import time
from collections.abc import Iterator

import torch

from benchmarks import quality
from benchmarks.cases import beginnings, data_file
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import IEEE, multiplied_in
from dmm_fast.data import Dataset

# What evaluation and writing need at the end.
RESERVE = 5.0
# Seconds between evaluations, each of which takes a fraction of one; and at most so many evaluations.
TURN, MOST_TURNS = 2.0, 20


def units(stage: Stage) -> Iterator[Unit]:
    """One race."""
    yield Unit("train to quality", lambda: train(stage), seconds=float("inf"))


@multiplied_in(IEEE)
def train(stage: Stage) -> None:
    """Check both, train both, and say how far each came."""
    device = torch.device(stage.device)
    data = quality.chosen_data(data_file(stage.data))
    if stage.quick:
        data = Dataset(data.name, *map(beginnings, (data.train, data.valid, data.test)))
    plan = quality.Plan(
        epochs=2 if stage.quick else quality.Plan.epochs,
        turn=max(TURN, stage.left() / (2 * MOST_TURNS)),  # both train
        deadline=time.monotonic() + stage.left() - RESERVE,
    )
    verdicts = quality.checked(data, device)
    for verdict in verdicts:
        stage.record.correctness(verdict.as_dict())
    if not all(verdict.ok for verdict in verdicts):
        stage.record.not_run(data.name, "all", "the sides do not compute the same")
        return
    both = quality.contestants(data, device)
    quality.race(*both, plan)
    for trainee in both[::-1] if both[0].ms else ():  # there may have been no time for a turn
        stage.record.add("cases", quality.row(trainee, data.name))
