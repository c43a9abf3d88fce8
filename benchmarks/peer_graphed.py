"""The peer "PyTorch, batched, CUDA graph" and its compiled variant: ``peer_batched`` replayed from graphs.

A graph holds a whole step, with noise, loss, gradients and optimizer, for one shape of a mini-batch. Each
mini-batch is copied into its inputs. The first step of a shape is eager, the second is captured; graphs share
a memory pool. ``CudaGraphs``, the only part of ``dmm_fast`` used here, is ``torch.cuda.graph`` on a side
stream.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peer_batched import PLAIN, BatchedStepper, Padded, Parts, padded
from benchmarks.stepper import tutorial_noise
from benchmarks.timing import Timed
from dmm_fast.data import Batch
from dmm_fast.infer._cuda_graphs import Capturer, CudaGraphs, Step


class GraphedStepper(BatchedStepper):
    """Takes the steps of :class:`BatchedStepper` from graphs captured by ``capturer``."""

    def __init__(
        self, case: Case, parameters: Mapping[str, Tensor], parts: Parts, capturer: Capturer
    ) -> None:
        super().__init__(case, parameters, parts)
        self._capturer = capturer
        self._inputs: dict[torch.Size, Padded] = {}
        self._replays: dict[torch.Size, Step] = {}

    def step(self, batch: Padded) -> Tensor:
        """Take a step with random noise; returns the loss before it, which the next step overwrites."""
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
        """The loss and gradients of a replay, with the tutorial's noise for ``seed``."""
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
        """The function to time, after two runs, so that the graph of every shape is captured."""
        for _ in range(2):
            self.run()
        return super().timed()


@dataclass(frozen=True)
class GraphedImplementation:
    """These peers; with CUDA graphs they need a GPU."""

    name: str = "PyTorch, batched, CUDA graph"
    parts: Callable[[], Parts] = lambda: PLAIN
    elbo: Callable[[], Any] = Trace_ELBO
    capturer: Callable[[torch.device], Capturer] = CudaGraphs

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> GraphedStepper:
        """Build a stepper for ``case`` that starts from ``parameters``."""
        return GraphedStepper(case, parameters, self.parts(), self.capturer(case.device))
