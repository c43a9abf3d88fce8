"""``python -m benchmarks.gradient_variance CHECKPOINT``: variances of gradient estimators at a trained model.

For many draws of the latents of one mini-batch, the gradient is computed by two estimators with the same
noise: total and path gradient of the ELBO, and total and doubly reparameterised gradient of the
importance-weighted bound. The variance of a network's gradient is the trace of its covariance over draws. The
means of both estimators are compared too: their difference, divided by its standard error, is about 1 if they
are equal.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks import machine
from benchmarks.correctness import CheckResult
from benchmarks.options import whole_number
from benchmarks.run import RESULTS, write
from dmm_fast.data import Batch, ControlledBatch
from dmm_fast.infer import ImportanceELBO, SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.training import load_checkpoint, load_dmm
from dmm_fast.training._checkpoint import train_config
from dmm_fast.training._data import load_data

AnyBatch = Batch | ControlledBatch

SUITE = "gradient-variance"
# Largest difference of the means, in standard errors. If the gradients of a network vary in a single
# direction, 4 is exceeded once in 16 000 times; in more directions, more rarely.
BOUND = 4.0
# Gradients that differ by less than this share of their standard deviation are the same but for rounding.
SAME = 1e-3


class Objective(NamedTuple):
    """An objective, and two estimators of its gradient that take the same noise.

    ``steps`` prepare the model and return the loss of each estimator.
    """

    name: str
    estimators: tuple[str, str]
    steps: tuple[Callable[[DMM], Any], Callable[[DMM], Any]]


def objectives(particles: int) -> tuple[Objective, ...]:
    """The ELBO, and the importance-weighted bound of so many draws."""

    def elbo(path: bool) -> Callable[[DMM], Any]:
        def prepared(dmm: DMM) -> Any:
            dmm.path_gradient = path
            return SequenceELBO(Trace_ELBO())

        return prepared

    def bound(gradient: str) -> Callable[[DMM], Any]:
        def prepared(dmm: DMM) -> Any:
            dmm.path_gradient = False
            return ImportanceELBO(particles, gradient)

        return prepared

    return (
        Objective("ELBO", ("total", "path"), (elbo(False), elbo(True))),
        Objective(f"IWAE, {particles} draws", ("total", "dreg"), (bound("total"), bound("dreg"))),
    )


class Moments:
    """Sums over draws of the gradient ``[n]`` of a network, and of its square."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | None = None
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, gradient: Tensor) -> None:
        """Count another draw."""
        # Relative to the first one, so that no digits are lost if the variance is small.
        self.first = gradient if self.first is None else self.first
        self._sum = self._sum + (gradient - self.first)
        self._squares = self._squares + (gradient - self.first).square()
        self.count += 1

    @property
    def mean(self) -> Tensor:
        """The mean ``[n]``."""
        assert self.first is not None
        return self.first + self._sum / self.count

    @property
    def variance(self) -> float:
        """The trace of the covariance."""
        total = torch.as_tensor(self._squares - self._sum * self._sum / self.count)
        return float(total.clamp(min=0.0).sum()) / (self.count - 1)

    @property
    def standard_errors(self) -> float:
        """The norm of the mean, divided by its root mean square if the expectation is zero."""
        return float(self.mean.norm()) / (self.variance / self.count) ** 0.5


def compare(dmm: DMM, batch: AnyBatch, objective: Objective, draws: int) -> list[dict[str, Any]]:
    """A row for each network of a model: the variances of both estimators, and how far their means agree."""
    moments: dict[str, tuple[Moments, Moments, Moments]] = {}
    loss = 0.0
    for seed in range(draws):
        both = []
        for prepared in objective.steps:
            torch.manual_seed(seed)
            value, gradients = _loss_and_gradients(dmm, prepared(dmm), batch)
            both.append(gradients)
        loss += value / draws
        for name, one in both[0].items():
            other = both[1][name]
            of_network = moments.setdefault(name, (Moments(), Moments(), Moments()))
            for each, gradient in zip(of_network, (one, other, other - one), strict=True):
                each.add(gradient)
    time_steps = float(batch.mini_batch_seq_lengths.sum())
    return [
        {"network": name, "loss": loss / time_steps, **_figures(*of_network)}
        for name, of_network in moments.items()
    ]


def _figures(one: Moments, other: Moments, difference: Moments) -> dict[str, Any]:
    assert difference.first is not None
    largest = difference.variance + float(difference.mean.square().sum())
    same = largest <= SAME**2 * one.variance
    return {
        "size": len(difference.first),
        "mean_norm": float(one.mean.norm()),
        "variances": [one.variance, other.variance],
        "standard_errors": None if same else difference.standard_errors,
    }


def _loss_and_gradients(dmm: DMM, elbo: Any, batch: AnyBatch) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of each network as one float64 vector."""
    dmm.zero_grad(set_to_none=True)
    with pyro.get_param_store().scope():
        loss = float(elbo.loss_and_grads(dmm.model, dmm.guide, *batch))
    found: dict[str, list[Tensor]] = {}
    for name, parameter in dmm.named_parameters():
        if parameter.grad is not None:
            found.setdefault(name.partition(".")[0], []).append(parameter.grad.flatten().double())
    return loss, {name: torch.cat(gradients) for name, gradients in found.items()}


def case_of(checkpoint: Path, data: str | None, rows: int) -> tuple[str, DMM, AnyBatch]:
    """A name, the model without dropout, and the first training sequences as a mini-batch."""
    saved = load_checkpoint(checkpoint)
    config = train_config(checkpoint, saved.config)
    found = load_data(config if data is None else dataclasses.replace(config, data=data))
    sequences = found.train
    model = config.emission + (f", augment {config.augment}" if config.augment else "")
    name = f"{found.name}, {model}, {config.inference}, epoch {saved.epoch}"
    return name, load_dmm(checkpoint), sequences.batch(torch.arange(min(rows, len(sequences))))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write. Returns 0, or 1 if the means of two estimators differ."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"suite": SUITE, "meta": machine.meta(torch.device("cpu"), quick=False)}
    checks: list[CheckResult] = []
    results["cases"] = []
    for checkpoint in args.checkpoint:
        name, dmm, batch = case_of(checkpoint, args.data, args.rows)
        print(name)
        for objective in objectives(args.particles):
            shared: dict[str, Any] = {"suite": SUITE, "case": name, "objective": objective.name}
            shared |= {"impl": objective.estimators[1], "draws": args.draws, "rows": len(batch[0])}
            for row in compare(dmm, batch, objective, args.draws):
                results["cases"].append({**shared, **row})
                error = row["standard_errors"] or 0.0
                what, where = f"mean gradient of {row['network']}", f"{name}, {objective.name}"
                checks.append(CheckResult(what, shared["impl"], where, error, BOUND, error <= BOUND))
                print(f"  {objective.name}, {row['network']}: {row['variances']}, {row['standard_errors']}")
    results["correctness"] = [check.as_dict() for check in checks]
    print(f"\nwritten: {write(results, args.out)}")
    return 0 if all(check.ok for check in checks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_variance", description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="+", help="checkpoints of training runs")
    add("--data", help="a data file; by default that of each training run")
    add("--draws", type=whole_number(2), default=200, help="draws of all latents, with a gradient each")
    positive, of_bound = whole_number(1), "draws of each sequence in the importance-weighted bound"
    add("--particles", type=positive, default=5, help=of_bound)
    add("--rows", type=positive, default=20, help="sequences of the mini-batch")
    add("--threads", type=positive, default=torch.get_num_threads())
    add("--out", type=Path, default=RESULTS, help="folder for the JSON file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
