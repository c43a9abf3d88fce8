"""``python -m benchmarks.quality``: train to the tutorial's test NLL; the tutorial has the same wall time.

Both train in turn, some seconds each, so that a slow minute of the machine hits both alike and both have had
as much time whenever it ends. Making a mini-batch is on the clock. Evaluation, after each turn, is off it, by
the same code and with the same noise for both. Hyperparameters are the tutorial's: the defaults of
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
from benchmarks.contestants import BASELINE, GRAPHED, OURS, starting_parameters
from benchmarks.correctness import Verdict, check
from benchmarks.run import RESULTS, write
from benchmarks.timing import Samples, load_average, load_warning
from benchmarks.trainee import Evaluation, FastStepper, Trainee, TutorialStepper
from dmm_fast.data import Dataset, chorales, load

SUITE = "train_to_quality"
# Nats a time step: the NLL that the tutorial reports of JSB's test set after its 5000 epochs.
TARGET = 6.87


@dataclass(frozen=True)
class Plan:
    """How long: ``epochs`` of ours or ``seconds`` for each, in turns of ``turn`` seconds.

    With ``until_target`` it ends where ours has reached the target. No
    turn begins that would end beyond ``deadline``, of ``time.monotonic``, if it took as long as any before.
    """

    epochs: int = 5000
    seconds: float = math.inf
    turn: float = 30.0
    until_target: bool = False
    deadline: float = math.inf

    def is_over(self, ours: Trainee) -> bool:
        """Whether ours has done what was asked for."""
        at_target = self.until_target and reached(ours.curve) is not None
        return at_target or ours.epoch >= self.epochs


def race(ours: Trainee, other: Trainee, plan: Plan) -> None:
    """Train both in turn; ``other`` for as long as ``ours``."""
    longest = 2 * plan.turn
    while not plan.is_over(ours) and ours.seconds < plan.seconds:
        begun = time.monotonic()
        if begun + longest > plan.deadline:
            break
        ours.train(min(plan.turn, plan.seconds - ours.seconds), plan.epochs)
        other.train(ours.seconds - other.seconds)
        for trainee in (ours, other):
            trainee.evaluate()
        print(f"  {ours.seconds:8.1f} s each: {_standing(ours)}; {_standing(other)}", flush=True)
        longest = max(longest, time.monotonic() - begun)


def reached(curve: Sequence[Evaluation]) -> Evaluation | None:
    """The first point at which the test NLL is the target or less."""
    return next((point for point in curve if point.test <= TARGET), None)


def row(trainee: Trainee, data: str) -> dict[str, Any]:
    """The trainee's row of the results: times are those of an SVI step, a sample an epoch or a part of it."""
    curve, first = trainee.curve, reached(trainee.curve)
    extra = {
        "data": data,
        "target": TARGET,
        "seconds": trainee.seconds,
        "epochs": trainee.epoch,
        "steps": trainee.steps,
        "reached": None if first is None else asdict(first),
        "best_test": min((point.test for point in curve), default=None),
        "last_test": curve[-1].test if curve else None,
        "last_test_elbo": curve[-1].test_elbo if curve else None,
        "curve": [asdict(point) for point in curve],
    }
    timed = Samples(tuple(trainee.ms)).as_dict()
    return {
        "suite": SUITE,
        "case": f"{data}, tutorial's settings",
        "impl": trainee.name,
        **timed,
        "extra": extra,
    }


def contestants(data: Dataset, device: torch.device) -> tuple[Trainee, Trainee]:
    """Ours and the tutorial, from the same parameters and with the same order of mini-batches."""
    name = (GRAPHED if device.type == "cuda" else OURS[0]).name
    ours = Trainee(name, FastStepper, data, device)
    return ours, Trainee(BASELINE.name, TutorialStepper, data, device)


def checked(data: Dataset, device: torch.device) -> list[Verdict]:
    """Loss and gradients of both on the first sequences, against float64."""
    first = torch.arange(min(cases.TUTORIAL_BATCH, len(data.train)))
    batch = tutorial_mini_batch(first, data.train.sequences, data.train.lengths)
    case = Case(f"{data.name}, the first {len(first)} sequences", (batch,), data.name, rounds=1).to(device)
    return check(case, starting_parameters({}), (BASELINE, GRAPHED if device.type == "cuda" else OURS[0]))


def chosen_data(path: Path | None) -> Dataset:
    """The chorales of a file, or the built-in ones."""
    return chorales() if path is None else load(path)


def _standing(trainee: Trainee) -> str:
    return f"{trainee.name} {trainee.epoch} epochs, test NLL {trainee.curve[-1].test:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, train, write. Returns 0, or 1 when the two do not compute the same."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    data = chosen_data(cases.data_file(None if args.data is None else Path(args.data)))
    meta = machine.meta(device, quick=False)
    meta["load_warning"] = load_warning(meta["load"], args.threads, meta["cpus"])
    plan = Plan(args.epochs, args.seconds, args.turn, args.until_target)
    verdicts = checked(data, device)
    results: dict[str, Any] = {"suite": "cpu-quality", "meta": meta, "cases": []}
    results["correctness"] = [verdict.as_dict() for verdict in verdicts]
    if not all(verdict.ok for verdict in verdicts):
        print("not trained: the sides do not compute the same", file=sys.stderr)
        return 1
    both = contestants(data, device)
    race(*both, plan)
    results["cases"] = [row(trainee, data.name) for trainee in both[::-1]]
    meta["load_at_end"] = load_average()
    print(f"\nwritten: {write(results, Path(args.out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--out", default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--epochs", type=int, default=default.epochs, help="of ours, at most")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="for each, at most")
    parser.add_argument("--turn", type=float, default=default.turn, help="seconds between evaluations")
    parser.add_argument("--until-target", action="store_true", help="end where ours has reached it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
