"""The peers "PyTorch, batched, CUDA graph" and its compiled sister: ``peer_batched`` replayed.

A graph holds a whole step, noise, loss, gradients and optimizer, for one shape of a mini-batch, and its
inputs take each mini-batch as a copy. A shape's first step is as it comes, the second is its capture; graphs
share their memory. ``CudaGraphs`` comes from ``dmm_fast``, but is no more than ``torch.cuda.graph`` on a side
stream: nothing else of ``dmm_fast`` runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peer_batched import PLAIN, BatchedRacer, Padded, Parts, padded
from benchmarks.racer import tutorial_noise
from benchmarks.timing import Timed
from dmm_fast.data import Batch
from dmm_fast.infer._cuda_graphs import Capturer, CudaGraphs, Step


class GraphedRacer(BatchedRacer):
    """A racer whose steps are replayed; ``capturer`` is how they are captured."""

    def __init__(
        self, case: Case, parameters: Mapping[str, Tensor], parts: Parts, capturer: Capturer
    ) -> None:
        super().__init__(case, parameters, parts)
        self._capturer = capturer
        self._inputs: dict[torch.Size, Padded] = {}
        self._replays: dict[torch.Size, Step] = {}

    def step(self, batch: Padded) -> Tensor:
        """One optimizer step with noise of its own; the loss before it, until the next step overwrites it."""
        shape = batch.x.shape
        if shape not in self._inputs:
            self._inputs[shape] = Padded(*map(torch.clone, batch))
            return self._capturer.run(partial(super().step, self._inputs[shape]))
        for mine, given in zip(self._inputs[shape], batch, strict=True):
            mine.copy_(given)
        if shape not in self._replays:
            self._replays[shape] = self._capturer.capture(partial(super().step, self._inputs[shape]))
        return self._replays[shape]()

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """From a replay: what a step captures, but with the noise that ``seed`` gives the tutorial."""
        inputs, gradients = padded(batch), list[Tensor]()
        eps = tutorial_noise(batch, self.parameters["z_0"].numel(), seed)

        def differentiated() -> Tensor:
            value, gradients[:] = self.differentiated(inputs, eps)
            return value

        self._capturer.run(differentiated)
        replay = self._capturer.capture(differentiated)
        value = replay().item()
        return value, {name: g.clone() for name, g in zip(self.parameters, gradients, strict=True)}

    def timed(self) -> Timed:
        """This racer as the clock wants it: it has run twice, so every shape has its graph."""
        for _ in range(2):
            self.run()
        return super().timed()


@dataclass(frozen=True)
class GraphedContestant:
    """The rows of these peers; with CUDA graphs, on a GPU alone."""

    name: str = "PyTorch, batched, CUDA graph"
    parts: Callable[[], Parts] = lambda: PLAIN
    elbo: Callable[[], Any] = Trace_ELBO
    capturer: Callable[[torch.device], Capturer] = CudaGraphs

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> GraphedRacer:
        """A racer for ``case`` that starts from ``parameters``."""
        return GraphedRacer(case, parameters, self.parts(), self.capturer(case.device))
