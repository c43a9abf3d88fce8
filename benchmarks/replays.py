"""Steps replayed from a graph do what the same steps do as they come."""

import pyro
import torch

from benchmarks.cases import Case
from benchmarks.contestants import BASELINE
from benchmarks.correctness import Verdict
from benchmarks.racer import Contestant

# Steps whose losses are compared: the first as they come, the others replayed. Adam magnifies the last bits
# of a gradient.
COMPARED, LOSS_BOUND = 5, 1e-4


def compare_replays(case: Case, plain: Contestant, graphed: Contestant) -> Verdict:
    """The losses of steps of ``graphed`` beside those of ``plain``, which draws the same noise.

    The gate sees the gradients of a contestant, and a replay shows none; later losses show that it stepped.
    """
    pyro.set_rng_seed(0)
    parameters = BASELINE.module(case.sizes).state_dict()
    losses = []
    for contestant in (plain, graphed):
        racer = contestant.setup(case, parameters)
        told = []
        with racer.active():
            for seed in range(COMPARED):
                pyro.set_rng_seed(seed)
                told.append(racer.run())
        losses.append(torch.tensor(told, dtype=torch.float64))
    of_plain, replayed = losses
    error = ((replayed - of_plain) / of_plain).abs().max().item()
    return Verdict("SVI step: worst loss", graphed.name, case.name, error, LOSS_BOUND, error <= LOSS_BOUND)
