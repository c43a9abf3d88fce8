"""Comparison of steps replayed from a CUDA graph with the same steps launched eagerly.

The equivalence check compares gradients, which a replayed step does not return. The losses of later
steps show whether its parameters were updated correctly.
"""

from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.correctness import CheckResult
from benchmarks.implementations import starting_parameters
from benchmarks.stepper import Implementation

# Runs to compare, the first of them eager. The bound is wide because Adam amplifies rounding errors.
COMPARED, LOSS_BOUND = 5, 1e-4


def compare_replays(
    case: Case,
    plain: Implementation,
    replayed: Implementation,
    parameters: Mapping[str, Tensor] | None = None,
) -> CheckResult:
    """Compare the losses of runs of ``replayed`` with those of ``plain``, each run with its own seed.

    Both start from ``parameters``, by default those of the tutorial.
    """
    parameters = starting_parameters(case.sizes) if parameters is None else parameters
    losses = []
    for implementation in (plain, replayed):
        stepper = implementation.setup(case, parameters)
        run_losses = []
        with stepper.active():
            for seed in range(COMPARED):
                pyro.set_rng_seed(seed)
                run_losses.append(stepper.run())
        losses.append(torch.tensor(run_losses, dtype=torch.float64))
    want, got = losses
    error = ((got - want) / want).abs().max().item()
    ok = error <= LOSS_BOUND
    return CheckResult("SVI step: worst loss", replayed.name, case.name, error, LOSS_BOUND, ok)
