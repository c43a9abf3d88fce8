"""The gate before the clock: same parameters and noise must give the same loss and gradients."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import TransformedDistribution

from benchmarks.cases import Case
from benchmarks.contestants import BASELINE
from benchmarks.precision import IEEE, TF32
from benchmarks.pyro_racer import PyroContestant, PyroRacer
from benchmarks.racer import Contestant, Racer
from dmm_fast.data import Batch

# TF32 keeps ten bits of a factor, 5e-4 of it on average where a kernel cuts the others off.
LOSS_BOUND = {IEEE: 1e-5, TF32: 1e-3}
# Gradients may err against float64 three times as much as the eager float32 baseline does.
GRADIENT_FACTOR = 3.0
# A baseline that happens to be exact must not make the bound zero; nor, in TF32, one whose products the
# library happens to compute in IEEE.
GRADIENT_FLOOR = {IEEE: 1e-6, TF32: 5e-3}
SEEDS = (0, 1, 2)

LossAndGrads = tuple[float, dict[str, Tensor]]


@dataclass(frozen=True)
class Verdict:
    """One line of the results' ``correctness`` list. Errors are relative."""

    op: str
    backend: str
    case: str
    max_rel_error: float
    bound: float
    ok: bool

    def as_dict(self) -> dict[str, object]:
        """The fields of a results row."""
        return asdict(self)


class SinglePrecisionNoise(Messenger):
    """Draws the per-step guide's noise in float32 whatever the precision of its parameters.

    A float64 run then sees the very numbers that a float32 run with the same seed sees.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        drawn_from, flows = msg["fn"], []
        if isinstance(getattr(drawn_from, "base_dist", None), TransformedDistribution):
            drawn_from, flows = drawn_from.base_dist.base_dist, drawn_from.base_dist.transforms
        if not hasattr(drawn_from, "stddev"):
            return
        loc, scale = drawn_from.mean, drawn_from.stddev
        eps = torch.empty(loc.shape, dtype=torch.float32, device=loc.device).normal_()
        value = loc + scale * eps.to(loc.dtype)
        for flow in flows:
            value = flow(value)
        msg["value"] = value


def double_reference(case: Case, parameters: Mapping[str, Tensor], elbo: Callable[[], Any]) -> PyroRacer:
    """The baseline in float64 with the noise of a float32 run."""
    racer = BASELINE.setup(case, parameters)
    racer.module.double()
    racer.elbo = elbo()
    guide = racer.module.guide

    def with_noise(*args: Any, **kwargs: Any) -> None:
        with SinglePrecisionNoise():
            guide(*args, **kwargs)

    racer.module.guide = with_noise  # type: ignore[method-assign]
    return racer


@contextmanager
def double_by_default() -> Iterator[None]:
    """Float64 as torch's default dtype, in which Pyro inverts a flow."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def to_double(batch: Batch) -> Batch:
    """The same mini-batch in float64."""
    reversed_batch = batch.mini_batch_reversed
    return batch._replace(
        mini_batch=batch.mini_batch.double(),
        mini_batch_reversed=None if reversed_batch is None else reversed_batch.double(),
        mini_batch_mask=batch.mini_batch_mask.double(),
    )


def worst_gradient_error(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    """The largest norm-wise relative error over the parameters.

    A gradient that is zero in ``want`` is measured against one: it must be zero to the same digits.
    """
    worst = 0.0
    for name, reference in want.items():
        scale = reference.norm().item() or 1.0
        error = (got[name].to(reference.dtype) - reference).norm().item() / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def check(case: Case, parameters: Mapping[str, Tensor], contestants: Iterable[Contestant]) -> list[Verdict]:
    """Loss and gradients of every contestant on the checked batches of ``case``.

    Gradient errors are medians over seeds: a ReLU input near zero that changes sign between
    precisions is a property of the seed, not of the code.
    """
    verdicts: list[Verdict] = []
    groups: dict[Callable[[], Any], list[Contestant]] = {}
    for contestant in contestants:
        groups.setdefault(contestant.elbo, []).append(contestant)
    for elbo, members in groups.items():
        reference = double_reference(case, parameters, elbo)
        eager = PyroContestant(BASELINE.name, BASELINE.module, BASELINE.optimizer, elbo)
        for index in case.checked:
            batch = case.batches[index]
            where = f"{case.name}, batch {index}"
            with double_by_default():
                want = [reference.loss_and_grads(to_double(batch), seed) for seed in SEEDS]
            plain = _evaluate(eager.setup(case, parameters), batch)
            bound = max(GRADIENT_FACTOR * _gradient_error(plain, want), GRADIENT_FLOOR[case.precision])
            for contestant in members:
                same = contestant == eager
                got = plain if same else _evaluate(contestant.setup(case, parameters), batch)
                verdicts += _verdicts(contestant.name, where, got, want, (LOSS_BOUND[case.precision], bound))
    return verdicts


def _evaluate(racer: Racer, batch: Batch) -> list[LossAndGrads]:
    return [racer.loss_and_grads(batch, seed) for seed in SEEDS]


def _gradient_error(got: list[LossAndGrads], want: list[LossAndGrads]) -> float:
    return statistics.median(worst_gradient_error(g, w) for (_, g), (_, w) in zip(got, want, strict=True))


def _verdicts(
    name: str, where: str, got: list[LossAndGrads], want: list[LossAndGrads], bounds: tuple[float, float]
) -> list[Verdict]:
    losses = [abs(g - w) / abs(w) for (g, _), (w, _) in zip(got, want, strict=True)]
    loss_error = max(e if e == e else float("inf") for e in losses)
    gradient_error = _gradient_error(got, want)
    of_loss, of_gradients = bounds
    return [
        Verdict("SVI loss", name, where, loss_error, of_loss, loss_error <= of_loss),
        Verdict("SVI gradients", name, where, gradient_error, of_gradients, gradient_error <= of_gradients),
    ]
