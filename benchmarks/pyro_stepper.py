"""Implementations that consist of a Pyro model and guide, trained by ``SVI``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import Case
from benchmarks.stepper import NoiseOfTheCpu
from benchmarks.timing import Timed
from dmm_fast.data import Batch
from dmm_fast.infer import GraphedSVI
from dmm_fast.model import DMM

AnyDMM = BaselineDMM | DMM


class PyroStepper:
    """Takes the SVI steps of a Pyro model and guide.

    Every stepper has a parameter store of its own, because all register their parameters as ``dmm``.
    """

    def __init__(
        self, case: Case, module: AnyDMM, optimizer: PyroOptim, elbo: Any, svi: Callable[..., SVI] = SVI
    ) -> None:
        self.case = case
        self.module = module
        self.elbo = elbo
        self._store: Any = None
        self._svi = svi(module.model, module.guide, optimizer, loss=elbo)

    @property
    def replays(self) -> bool:
        """True if the steps are replayed from CUDA graphs."""
        return isinstance(self._svi, GraphedSVI) and self.case.device.type == "cuda"

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this stepper's parameter store the current one."""
        with pyro.get_param_store().scope(self._store) as self._store:
            yield

    def run(self) -> float:
        """Take an SVI step on every batch of the case, which is one timed run. Returns the last loss."""
        loss: float | Tensor = float("nan")
        for batch in self.case.batches:
            loss = self._svi.step(*batch, self.case.annealing_factor)
        return float(loss)  # synchronises, where the SVI returns a tensor on the device

    def step(self, batch: Batch) -> float:
        """Take one SVI step; returns the loss before it."""
        return float(self._svi.step(*batch, self.case.annealing_factor))

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter with the noise drawn after ``seed``."""
        with self.active(), NoiseOfTheCpu():
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
        """The function to time; with graphs, the graph of every shape is captured first."""
        if isinstance(self._svi, GraphedSVI):
            with self.active():
                for _ in range(1 + self._svi.warm_up):
                    self.run()
        return Timed(self.run, self.active)


@dataclass(frozen=True)
class PyroImplementation:
    """A Pyro model and guide with an optimizer and a loss.

    Attributes:
        name: of its rows in the results.
        module: makes the model and guide from constructor arguments.
        optimizer: makes the optimizer.
        elbo: the Pyro loss that is minimised.
        svi: makes the SVI. Other classes than Pyro's ``SVI`` replay CUDA graphs: they get batches that are
            entirely on the device, without the reversed sequences.
        loss: wraps the Pyro loss in an equivalent one, if given.
    """

    name: str
    module: Callable[[Mapping[str, Any]], AnyDMM]
    optimizer: Callable[[], PyroOptim]
    elbo: Callable[[], Any] = Trace_ELBO
    svi: Callable[..., SVI] = SVI
    loss: Callable[[Any], Any] | None = None

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> PyroStepper:
        """Build a stepper for ``case`` that starts from ``parameters``."""
        module = self.module(case.sizes)
        module.load_state_dict(dict(parameters), strict=True)
        module.to(case.device)
        if self.svi is not SVI:
            case = replace(case, batches=tuple(_resident(batch) for batch in case.batches))
        elbo = self.elbo() if self.loss is None else self.loss(self.elbo())
        return PyroStepper(case, module, self.optimizer(), elbo, self.svi)


def _resident(batch: Batch) -> Batch:
    lengths = batch.mini_batch_seq_lengths.to(batch.mini_batch.device)
    return batch._replace(mini_batch_reversed=None, mini_batch_seq_lengths=lengths)
