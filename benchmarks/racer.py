"""What the gate and the clock ask of a contestant, and what all contestants share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.cases import Case
from benchmarks.timing import Timed
from dmm_fast.data import Batch

# The tutorial's optimizer settings.
OPTIMIZER: dict[str, Any] = {
    "lr": 3e-4,
    "betas": (0.96, 0.999),
    "clip_norm": 10.0,
    "lrd": 0.99996,
    "weight_decay": 2.0,
}

# Here for who has to say that it is left out.
JAX_NAME = "JAX, jit + lax.scan"


class Racer(Protocol):
    """One contestant on one case: parameters and optimizer of its own."""

    def active(self) -> AbstractContextManager[None]:
        """What must hold while it computes; entered and left off the clock."""

    def run(self) -> float:
        """One timed run: an SVI step on every batch of the case. Returns the last loss."""

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter, under the tutorial's names, with the noise
        that the tutorial's guide draws after ``seed``.
        """

    def timed(self) -> Timed:
        """This racer as the clock wants it."""


class Contestant(Protocol):
    """A row of the results."""

    @property
    def name(self) -> str:
        """What the row is called."""

    @property
    def elbo(self) -> Callable[[], Any]:
        """The Pyro loss whose value and gradients it must have."""

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> Racer:
        """A racer for ``case`` that starts from ``parameters``, the tutorial's ``state_dict``."""


def tutorial_noise(batch: Batch, z_dim: int, seed: int) -> Tensor:
    """The standard normals ``[T, B, Z]`` of the tutorial's guide after ``seed``: one draw a step on a CPU."""
    B, T, _ = batch.mini_batch.shape
    pyro.set_rng_seed(seed)
    return torch.stack([torch.randn(B, z_dim) for _ in range(T)]).to(batch.mini_batch.device)


class NoiseOfTheCpu(TorchFunctionMode):
    """Normal noise is drawn on the CPU, step after step, whatever device it is for.

    A GPU's generator gives T draws of ``[B, Z]`` other numbers than one draw of ``[T, B, Z]``: contestants
    that draw differently could not be compared.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.normal_:
            return func(*args, **(kwargs or {}))
        out: Tensor = args[0]
        for step in out if out.dim() > 2 else (out,):
            step.copy_(torch.empty(step.shape, dtype=out.dtype).normal_())
        return out
