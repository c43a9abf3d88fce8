"""Checks shared by the tests of all peers in the benchmarks."""

import pyro
import torch
from torch import Tensor

from benchmarks.baseline import tutorial_mini_batch
from benchmarks.cases import QUICK_SIZES, Case
from benchmarks.correctness import check
from benchmarks.implementations import BASELINE
from benchmarks.stepper import Implementation
from dmm_fast.data import Batch

LENGTHS = ([5, 9, 1, 6], [1], [4, 4, 4], [3], [7, 1, 1])
STEPS = 8


def ragged_batch(lengths: list[int]) -> Batch:
    sequences = torch.zeros(len(lengths), max(lengths), 88)
    for row, length in zip(sequences, lengths, strict=True):
        row[:length] = (torch.rand(length, 88) < 0.2).float()
    return tutorial_mini_batch(torch.arange(len(lengths)), sequences, torch.tensor(lengths))


def ragged_case(count: int = len(LENGTHS)) -> Case:
    batches = tuple(ragged_batch(lengths) for lengths in LENGTHS[:count])
    return Case("ragged", batches, "random", 1, checked=tuple(range(len(batches))), sizes=QUICK_SIZES)


def parameters() -> dict[str, Tensor]:
    """The tutorial's initial parameters, with random initial states in place of zeros, which hide errors."""
    state = BASELINE.module(QUICK_SIZES).state_dict()
    return {n: torch.randn_like(p) if n in ("z_0", "z_q_0", "h_0") else p for n, p in state.items()}


def disagreements(implementation: Implementation, case: Case) -> set[str]:
    """The results that disagree with float64."""
    return {v.op for v in check(case, parameters(), [implementation]) if not v.ok}


def baseline_losses(case: Case, start: dict[str, Tensor]) -> list[float]:
    """Losses of ``STEPS`` SVI steps, cycling through the batches; step i draws its noise with seed i."""
    stepper = BASELINE.setup(case, start)
    losses = []
    with stepper.active():
        for seed in range(STEPS):
            pyro.set_rng_seed(seed)
            losses.append(stepper.step(case.batches[seed % len(case.batches)]))
    return losses
