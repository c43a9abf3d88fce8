"""Training to the tutorial's test NLL, interleaved with the tutorial for the same wall time."""

import time
from collections.abc import Iterator

import torch

from benchmarks.cases import beginnings, data_file
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import IEEE, multiplied_in
from benchmarks.quality import to_target
from dmm_fast.data import Dataset

# Seconds reserved for the last evaluation and for writing.
RESERVE = 5.0
# Seconds between evaluations, each of which takes less than one; and the largest number of evaluations.
TURN, MOST_TURNS = 2.0, 20


def units(stage: Stage) -> Iterator[Unit]:
    """A single unit."""
    yield Unit("train to quality", lambda: train(stage), seconds=float("inf"))


@multiplied_in(IEEE)
def train(stage: Stage) -> None:
    """Check both, train both, and record their curves."""
    device = torch.device(stage.device)
    data = to_target.chosen_data(data_file(stage.data))
    if stage.quick:
        data = Dataset(data.name, *map(beginnings, (data.train, data.valid, data.test)))
    plan = to_target.Plan(
        epochs=2 if stage.quick else to_target.Plan.epochs,
        turn=max(TURN, stage.left() / (2 * MOST_TURNS)),  # both train
        deadline=time.monotonic() + stage.left() - RESERVE,
    )
    check_results = to_target.check_both(data, device)
    for result in check_results:
        stage.record.correctness(result.as_dict())
    if not all(result.ok for result in check_results):
        stage.record.not_run(data.name, "all", "the implementations do not agree")
        return
    both = to_target.training_runs(data, device)
    to_target.train_interleaved(*both, plan)
    for training_run in both[::-1] if both[0].ms else ():  # empty if there was no time for a turn
        stage.record.add("cases", to_target.row(training_run, data.name))
