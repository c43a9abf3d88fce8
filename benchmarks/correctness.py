"""Comparison with float64: the same parameters and noise must give the same loss and gradients."""

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
from benchmarks.implementations import BASELINE
from benchmarks.precision import IEEE, TF32
from benchmarks.pyro_stepper import PyroImplementation, PyroStepper
from benchmarks.stepper import Implementation, Stepper
from dmm_fast.data import Batch

# TF32 keeps ten mantissa bits of a factor; a kernel that truncates errs by 5e-4 of it on average.
LOSS_BOUND = {IEEE: 1e-5, TF32: 1e-3}
# Gradients may have three times the error of the eager float32 baseline against float64.
GRADIENT_FACTOR = 3.0
# Lower limits of the bound, for a baseline that happens to be exact or, in TF32, whose products the library
# happens to compute in IEEE.
GRADIENT_FLOOR = {IEEE: 1e-6, TF32: 5e-3}
SEEDS = (0, 1, 2)

LossAndGrads = tuple[float, dict[str, Tensor]]


@dataclass(frozen=True)
class CheckResult:
    """A row of the results' ``correctness`` list. Errors are relative."""

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
    """Draws the noise of the per-step guide in float32 for parameters of any precision.

    A float64 run then uses the same noise as a float32 run with the same seed.
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


def double_reference(case: Case, parameters: Mapping[str, Tensor], elbo: Callable[[], Any]) -> PyroStepper:
    """The stepper of the baseline in float64, with the noise of a float32 run."""
    stepper = BASELINE.setup(case, parameters)
    stepper.module.double()
    stepper.elbo = elbo()
    guide = stepper.module.guide

    def with_noise(*args: Any, **kwargs: Any) -> None:
        with SinglePrecisionNoise():
            guide(*args, **kwargs)

    stepper.module.guide = with_noise  # type: ignore[method-assign]
    return stepper


@contextmanager
def double_by_default() -> Iterator[None]:
    """Make float64 the default dtype of torch, which is the dtype Pyro inverts a flow in."""
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
    """The largest norm-wise relative error over the parameters; NaN counts as infinite.

    For a gradient that is zero in ``want``, the absolute error counts.
    """
    worst = 0.0
    for name, reference in want.items():
        scale = reference.norm().item() or 1.0
        error = (got[name].to(reference.dtype) - reference).norm().item() / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def check(
    case: Case, parameters: Mapping[str, Tensor], implementations: Iterable[Implementation]
) -> list[CheckResult]:
    """Compare loss and gradients of every implementation with float64 on the checked batches of ``case``.

    Gradient errors are medians over seeds, because a ReLU input near zero may change its sign between
    precisions, which depends on the seed and not on the code.
    """
    check_results: list[CheckResult] = []
    groups: dict[Callable[[], Any], list[Implementation]] = {}
    for implementation in implementations:
        groups.setdefault(implementation.elbo, []).append(implementation)
    for elbo, members in groups.items():
        reference = double_reference(case, parameters, elbo)
        eager = PyroImplementation(BASELINE.name, BASELINE.module, BASELINE.optimizer, elbo)
        for index in case.checked:
            batch = case.batches[index]
            where = f"{case.name}, batch {index}"
            with double_by_default():
                want = [reference.loss_and_grads(to_double(batch), seed) for seed in SEEDS]
            plain = _evaluate(eager.setup(case, parameters), batch)
            bound = max(GRADIENT_FACTOR * _gradient_error(plain, want), GRADIENT_FLOOR[case.precision])
            for implementation in members:
                same = implementation == eager
                got = plain if same else _evaluate(implementation.setup(case, parameters), batch)
                check_results += _check_results(
                    implementation.name, where, got, want, (LOSS_BOUND[case.precision], bound)
                )
    return check_results


def _evaluate(stepper: Stepper, batch: Batch) -> list[LossAndGrads]:
    return [stepper.loss_and_grads(batch, seed) for seed in SEEDS]


def _gradient_error(got: list[LossAndGrads], want: list[LossAndGrads]) -> float:
    return statistics.median(worst_gradient_error(g, w) for (_, g), (_, w) in zip(got, want, strict=True))


def _check_results(
    name: str, where: str, got: list[LossAndGrads], want: list[LossAndGrads], bounds: tuple[float, float]
) -> list[CheckResult]:
    losses = [abs(g - w) / abs(w) for (g, _), (w, _) in zip(got, want, strict=True)]
    loss_error = max(e if e == e else float("inf") for e in losses)
    gradient_error = _gradient_error(got, want)
    of_loss, of_gradients = bounds
    return [
        CheckResult("SVI loss", name, where, loss_error, of_loss, loss_error <= of_loss),
        CheckResult(
            "SVI gradients", name, where, gradient_error, of_gradients, gradient_error <= of_gradients
        ),
    ]
