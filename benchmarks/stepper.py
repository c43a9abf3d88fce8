"""Protocols of implementations and their steppers, and the noise and optimizer settings they share."""

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

# Defined here because it is also needed where JAX is not installed, to report the peer as skipped.
JAX_NAME = "JAX, jit + lax.scan"


class Stepper(Protocol):
    """Takes the SVI steps of one implementation on one case; owns its parameters and optimizer."""

    def active(self) -> AbstractContextManager[None]:
        """A context to compute in, such as a parameter store; entering and leaving it is not timed."""

    def run(self) -> float:
        """Take an SVI step on every batch of the case, which is one timed run. Returns the last loss."""

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter, under the tutorial's names, with the noise
        that the tutorial's guide draws after ``seed``.
        """

    def timed(self) -> Timed:
        """The function to time, ready to run: warmed up and captured if necessary."""


class Implementation(Protocol):
    """An implementation of the SVI step, which has a row in the results."""

    @property
    def name(self) -> str:
        """The name of its rows."""

    @property
    def elbo(self) -> Callable[[], Any]:
        """The Pyro loss whose value and gradients it must reproduce."""

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> Stepper:
        """Build a stepper for ``case`` that starts from ``parameters``, the tutorial's ``state_dict``."""


def tutorial_noise(batch: Batch, z_dim: int, seed: int) -> Tensor:
    """The standard normals ``[T, B, Z]`` of the tutorial's guide after ``seed``, a CPU draw per step."""
    B, T, _ = batch.mini_batch.shape
    pyro.set_rng_seed(seed)
    return torch.stack([torch.randn(B, z_dim) for _ in range(T)]).to(batch.mini_batch.device)


class NoiseOfTheCpu(TorchFunctionMode):
    """Draws normal noise on the CPU, step by step, for any device.

    The generator of a GPU returns different numbers for T draws of ``[B, Z]`` and one draw of
    ``[T, B, Z]``, so implementations that draw differently could not be compared.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.normal_:
            return func(*args, **(kwargs or {}))
        out: Tensor = args[0]
        for step in out if out.dim() > 2 else (out,):
            step.copy_(torch.empty(step.shape, dtype=out.dtype).normal_())
        return out
