"""Steps replayed from a graph beside the same steps as they come.

The gate sees the gradients of a contestant, and a replayed step shows none: later losses
show that it stepped.
"""

from collections.abc import Mapping

import pyro
import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contestants import starting_parameters
from benchmarks.correctness import Verdict
from benchmarks.racer import Contestant

# Runs that are compared: one as it comes, then replays. Adam magnifies the last bits of a gradient.
COMPARED, LOSS_BOUND = 5, 1e-4


def compare_replays(
    case: Case, plain: Contestant, replayed: Contestant, parameters: Mapping[str, Tensor] | None = None
) -> Verdict:
    """The losses of runs of ``replayed`` against those of ``plain``, each run from a seed of its own.

    Both start from ``parameters``, by default the tutorial's.
    """
    parameters = starting_parameters(case.sizes) if parameters is None else parameters
    losses = []
    for contestant in (plain, replayed):
        racer = contestant.setup(case, parameters)
        told = []
        with racer.active():
            for seed in range(COMPARED):
                pyro.set_rng_seed(seed)
                told.append(racer.run())
        losses.append(torch.tensor(told, dtype=torch.float64))
    want, got = losses
    error = ((got - want) / want).abs().max().item()
    ok = error <= LOSS_BOUND
    return Verdict("SVI step: worst loss", replayed.name, case.name, error, LOSS_BOUND, ok)
