"""Who is timed: each contestant builds, for a case, a racer with parameters and optimizer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import ClippedAdam, PyroOptim
from torch import Tensor

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import Case
from benchmarks.timing import Timed
from dmm_fast.data import Batch
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam

# The tutorial's optimizer settings.
OPTIMIZER = {
    "lr": 3e-4,
    "betas": (0.96, 0.999),
    "clip_norm": 10.0,
    "lrd": 0.99996,
    "weight_decay": 2.0,
}


AnyDMM = BaselineDMM | DMM


class Racer:
    """One contestant on one case: parameters, optimizer, and a Pyro parameter store of its own.

    Both sides register their parameters under the name ``dmm``, hence the stores.
    """

    def __init__(self, case: Case, module: AnyDMM, optimizer: PyroOptim, elbo: Any) -> None:
        self.case = case
        self.module = module
        self.elbo = elbo
        self._store: Any = None
        self._svi = SVI(module.model, module.guide, optimizer, loss=elbo)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this racer's parameter store the current one."""
        with pyro.get_param_store().scope(self._store) as self._store:
            yield

    def run(self) -> float:
        """One timed run: an SVI step on every batch of the case. Returns the last loss."""
        loss = float("nan")
        for batch in self.case.batches:
            loss = self._svi.step(*batch, self.case.annealing_factor)
        return loss

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and every parameter's gradient with the noise that ``seed`` gives."""
        with self.active():
            pyro.set_rng_seed(seed)
            self.module.zero_grad(set_to_none=True)
            loss = self.elbo.loss_and_grads(
                self.module.model, self.module.guide, *batch, self.case.annealing_factor
            )
            grads = {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in self.module.named_parameters()
            }
            self.module.zero_grad(set_to_none=True)
        return float(loss), grads

    def timed(self) -> Timed:
        """This racer as the clock wants it."""
        return Timed(self.run, self.active)


@dataclass(frozen=True)
class Contestant:
    """A row of the results. ``setup`` builds the racer; ``elbo`` is the loss it minimises."""

    name: str
    module: Callable[[Mapping[str, Any]], AnyDMM]
    optimizer: Callable[[], PyroOptim]
    elbo: Callable[[], Any] = Trace_ELBO

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> Racer:
        """A racer for ``case`` that starts from ``parameters``."""
        module = self.module(case.sizes)
        module.load_state_dict(dict(parameters), strict=True)
        return Racer(case, module, self.optimizer(), self.elbo())


def _adam() -> PyroOptim:
    return ClippedAdam(dict(OPTIMIZER))


def _batched_adam() -> PyroOptim:
    return PyroClippedAdam(dict(OPTIMIZER))


def _tutorial(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes)


def _mended(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes, mended=True)


def _ours(sizes: Mapping[str, Any]) -> AnyDMM:
    return DMM(**sizes)


BASELINE = Contestant("tutorial", _tutorial, _adam)
MENDED = Contestant("tutorial mended", _mended, _adam)
CONTESTANTS = (
    BASELINE,
    MENDED,
    Contestant("dmm_fast", _ours, _batched_adam),
    Contestant("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
)
