"""``python -m benchmarks.quality.to_target``: train to the tutorial's test NLL, beside the tutorial.

Both train alternately, some seconds each, so that drift of the machine affects both alike and both have the
same wall time at any end. That time includes making mini-batches. It does not include the evaluation after
each turn, which uses the same code and noise for both. Hyperparameters are the tutorial's: the defaults of
:class:`~dmm_fast.training._config.TrainConfig`.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, machine
from benchmarks.baseline import tutorial_mini_batch
from benchmarks.cases import Case
from benchmarks.correctness import CheckResult, check
from benchmarks.implementations import BASELINE, GRAPHED, OURS, starting_parameters
from benchmarks.run import RESULTS, write
from benchmarks.timing import Samples, load_average, load_warning
from benchmarks.training_run import Evaluation, FastTrainingStepper, TrainingRun, TutorialTrainingStepper
from dmm_fast.data import Dataset, chorales, load

SUITE = "train_to_quality"
# Nats per time step: the NLL that the tutorial reports for the test set of JSB after 5000 epochs.
TARGET = 6.87


@dataclass(frozen=True)
class Plan:
    """Limits of the training.

    Attributes:
        epochs: limit for ``dmm_fast``.
        seconds: limit for each of the two.
        turn: seconds between evaluations.
        until_target: end when ``dmm_fast`` has reached the target.
        deadline: in seconds of ``time.monotonic``; no turn begins that would end later if it took as long as
            the longest so far.
    """

    epochs: int = 5000
    seconds: float = math.inf
    turn: float = 30.0
    until_target: bool = False
    deadline: float = math.inf

    def is_over(self, ours: TrainingRun) -> bool:
        """True when ``dmm_fast`` has reached its epochs or the target."""
        at_target = self.until_target and reached(ours.curve) is not None
        return at_target or ours.epoch >= self.epochs


def train_interleaved(ours: TrainingRun, other: TrainingRun, plan: Plan) -> None:
    """Train both alternately, ``other`` for the same wall time as ``ours``."""
    longest = 2 * plan.turn
    while not plan.is_over(ours) and ours.seconds < plan.seconds:
        begun = time.monotonic()
        if begun + longest > plan.deadline:
            break
        ours.train(min(plan.turn, plan.seconds - ours.seconds), plan.epochs)
        other.train(ours.seconds - other.seconds)
        for training_run in (ours, other):
            training_run.evaluate()
        print(f"  {ours.seconds:8.1f} s each: {_standing(ours)}; {_standing(other)}", flush=True)
        longest = max(longest, time.monotonic() - begun)


def reached(curve: Sequence[Evaluation]) -> Evaluation | None:
    """The first point at which the test NLL is the target or less."""
    return next((point for point in curve if point.test <= TARGET), None)


def row(training_run: TrainingRun, data: str) -> dict[str, Any]:
    """The results row of a training run, with mean times of an SVI step, a sample per part of an epoch."""
    curve, first = training_run.curve, reached(training_run.curve)
    extra = {
        "data": data,
        "target": TARGET,
        "seconds": training_run.seconds,
        "epochs": training_run.epoch,
        "steps": training_run.steps,
        "reached": None if first is None else asdict(first),
        "best_test": min((point.test for point in curve), default=None),
        "last_test": curve[-1].test if curve else None,
        "last_test_elbo": curve[-1].test_elbo if curve else None,
        "curve": [asdict(point) for point in curve],
    }
    timed = Samples(tuple(training_run.ms)).as_dict()
    return {
        "suite": SUITE,
        "case": f"{data}, tutorial's settings",
        "impl": training_run.name,
        **timed,
        "extra": extra,
    }


def training_runs(data: Dataset, device: torch.device) -> tuple[TrainingRun, TrainingRun]:
    """The runs of ``dmm_fast`` and the tutorial, with equal initial parameters and order of mini-batches."""
    name = (GRAPHED if device.type == "cuda" else OURS[0]).name
    ours = TrainingRun(name, FastTrainingStepper, data, device)
    return ours, TrainingRun(BASELINE.name, TutorialTrainingStepper, data, device)


def check_both(data: Dataset, device: torch.device) -> list[CheckResult]:
    """Compare loss and gradients of both on the first sequences with float64."""
    first = torch.arange(min(cases.TUTORIAL_BATCH, len(data.train)))
    batch = tutorial_mini_batch(first, data.train.sequences, data.train.lengths)
    case = Case(f"{data.name}, the first {len(first)} sequences", (batch,), data.name, rounds=1).to(device)
    return check(case, starting_parameters({}), (BASELINE, GRAPHED if device.type == "cuda" else OURS[0]))


def chosen_data(path: Path | None) -> Dataset:
    """The chorales of the file, or the built-in ones."""
    return chorales() if path is None else load(path)


def _standing(training_run: TrainingRun) -> str:
    return f"{training_run.name} {training_run.epoch} epochs, test NLL {training_run.curve[-1].test:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, train, write. Returns 0, or 1 if the two do not agree."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    data = chosen_data(cases.data_file(None if args.data is None else Path(args.data)))
    meta = machine.meta(device, quick=False)
    meta["load_warning"] = load_warning(meta["load"], args.threads, meta["cpus"])
    plan = Plan(args.epochs, args.seconds, args.turn, args.until_target)
    check_results = check_both(data, device)
    results: dict[str, Any] = {"suite": "cpu-quality", "meta": meta, "cases": []}
    results["correctness"] = [result.as_dict() for result in check_results]
    if not all(result.ok for result in check_results):
        print("not trained: the implementations do not agree", file=sys.stderr)
        return 1
    both = training_runs(data, device)
    train_interleaved(*both, plan)
    results["cases"] = [row(training_run, data.name) for training_run in both[::-1]]
    meta["load_at_end"] = load_average()
    print(f"\nwritten: {write(results, Path(args.out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.to_target", description=__doc__)
    parser.add_argument("--out", default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=default.epochs, help="limit for dmm_fast")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="limit for each")
    parser.add_argument("--turn", type=float, default=default.turn, help="seconds between evaluations")
    parser.add_argument("--until-target", action="store_true", help="end when dmm_fast has reached it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
