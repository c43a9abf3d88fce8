"""Whoever trains for a test NLL: a model, its optimizer, and a clock that runs while it trains."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from benchmarks.baseline import BaselineDMM, tutorial_mini_batch
from benchmarks.racer import OPTIMIZER
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import GraphedSVI, evaluate_elbo, evaluate_importance_nll
from dmm_fast.infer._cuda_graphs import Capturer
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.training import TrainConfig

EVALUATION_SEED, PARTICLES = 1, 100


@dataclass(frozen=True)
class Evaluation:
    """A point of the curve, in nats a time step.

    ``train``, ``valid`` and ``test_elbo`` are negative ELBOs of one draw, the first over the last whole epoch
    of training, annealed as its loss was. ``test`` is the NLL itself, by importance sampling with
    :data:`PARTICLES` draws; the ELBO bounds it from above, a quarter of a nat too high where a DMM has learnt
    the chorales.
    """

    seconds: float
    epoch: int
    step: int
    train: float | None
    valid: float
    test: float
    test_elbo: float


class Stepper(Protocol):
    """A model and one SVI step of it."""

    @property
    def module(self) -> nn.Module:
        """What is trained; its ``state_dict`` is that of the tutorial."""

    def step(self, indices: Tensor, factor: float) -> Tensor | float:
        """An SVI step on these training sequences, in any order; its loss."""


class TutorialStepper:
    """As the tutorial's loop does it: the mini-batch is made on the host, and goes to the GPU from there."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.module = BaselineDMM(data.train.sequences.shape[-1]).to(device)
        self._train, self._cuda = data.train, device.type == "cuda"
        self._svi = SVI(self.module.model, self.module.guide, ClippedAdam(dict(OPTIMIZER)), Trace_ELBO())

    def step(self, indices: Tensor, factor: float) -> float:
        """One SVI step."""
        train = self._train
        batch = tutorial_mini_batch(indices, train.sequences, train.lengths, cuda=self._cuda)
        return float(self._svi.step(*batch, factor))


class FastStepper:
    """As ``dmm-fast train`` does it: the data live on the device, and so does the loss."""

    def __init__(self, data: Dataset, device: torch.device, capturer: Capturer | None = None) -> None:
        self.module = DMM(data.train.sequences.shape[-1]).to(device)
        self._train, self._cuda = data.train.to(device), device.type == "cuda"
        self._lengths = data.train.lengths
        capturable = {"capturable": True} if self._cuda or capturer else {}
        self._svi = GraphedSVI(
            self.module.model,
            self.module.guide,
            PyroClippedAdam(OPTIMIZER | capturable),
            Trace_ELBO(),
            gather=self._gather,
            capturer=capturer,
        )

    def step(self, indices: Tensor, factor: float) -> Tensor:
        """One SVI step; longest first, ties as in the tutorial."""
        lengths = self._lengths[indices]
        indices, longest = indices[torch.sort(lengths).indices.flip(0)], int(lengths.max())
        if self._cuda:
            longest = self._train.padded_steps(longest)
            indices = indices.pin_memory().to(self._train.sequences.device, non_blocking=True)
        return self._svi.step(indices, longest, factor)

    def _gather(self, indices: Tensor, T: int, factor: float | Tensor) -> tuple[Any, ...]:
        return (*self._train.batch(indices, T), factor)


class Trainee:
    """One contestant, with random numbers and a parameter store of its own.

    Args:
        name: of its row in the results.
        make: its stepper, of the data on the host and of a device.
        data: on the host.
        device: where to train.
        config: schedule and seed.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Dataset, torch.device], Stepper],
        data: Dataset,
        device: torch.device,
        config: TrainConfig | None = None,
    ) -> None:
        self.name, self.config = name, config or TrainConfig()
        self.epoch = self.steps = 0
        self.seconds = 0.0
        self.curve: list[Evaluation] = []
        self.ms: list[float] = []  # of a step, a mean for each turn
        self._train, self._device = data.train, device
        self._valid, self._test = data.valid.to(device), data.test.to(device)
        self._to_do: list[Tensor] = []
        self._losses: list[Tensor | float] = []
        self._nats_of_epoch: float | None = None
        self._store: Any = None
        self._random: list[Tensor] | None = None
        with self._active():
            self._judge = DMM(data.train.sequences.shape[-1]).to(device).eval()
            pyro.set_rng_seed(self.config.seed)
            self._stepper = make(data, device)

    @property
    def num_mini_batches(self) -> int:
        """SVI steps an epoch."""
        return -(-len(self._train) // self.config.mini_batch_size)

    def train(self, seconds: float, epochs: float = math.inf) -> None:
        """Train for so long, to the next step, or until so many epochs are done."""
        end = self.seconds + seconds
        with self._active():
            while self.seconds < end and self.epoch < epochs:
                if self._train_until(end):
                    self._finish_epoch()

    def evaluate(self) -> None:
        """Add where training stands to the curve; off the clock."""
        self._judge.load_state_dict(self._stepper.module.state_dict())
        with torch.no_grad(), torch.random.fork_rng(devices=self._cuda_devices):
            valid, elbo = self._negative_elbo(self._valid), self._negative_elbo(self._test)
            nll = evaluate_importance_nll(self._judge, self._test, PARTICLES, PARTICLES).total_over_total
        point = Evaluation(self.seconds, self.epoch, self.steps, self._nats_of_epoch, valid, nll, elbo)
        self.curve.append(point)

    def _train_until(self, end: float) -> bool:
        """Step until the clock shows ``end``, but no further than this epoch; whether that is over."""
        if not self._to_do:
            self._to_do = list(torch.randperm(len(self._train)).split(self.config.mini_batch_size))
        start, steps, elapsed = self._now(), self.steps, 0.0
        while self._to_do and self.seconds + elapsed < end:
            self._step()
            elapsed = time.perf_counter() - start  # of the host, which does not wait for each step
        over = not self._to_do
        if over:
            self._losses = [float(loss) for loss in self._losses]
        elapsed = self._now() - start
        self.seconds += elapsed
        self.ms.append(1e3 * elapsed / (self.steps - steps))
        return over

    def _step(self) -> None:
        number = self.num_mini_batches - len(self._to_do)
        indices = self._to_do.pop(0)
        factor = self.config.annealing_factor(self.epoch, number, self.num_mini_batches)
        self._losses.append(self._stepper.step(indices, factor))
        self.steps += 1

    def _finish_epoch(self) -> None:
        self.epoch += 1
        self._nats_of_epoch = sum(map(float, self._losses)) / self._train.num_time_steps
        self._losses = []

    def _negative_elbo(self, sequences: SequenceSet) -> float:
        torch.manual_seed(EVALUATION_SEED)
        return evaluate_elbo(self._judge, sequences).total_over_total

    @contextmanager
    def _active(self) -> Iterator[None]:
        """With this trainee's parameter store and random numbers in place of the others'."""
        with (
            pyro.get_param_store().scope(self._store) as self._store,
            torch.random.fork_rng(self._cuda_devices),
        ):
            if self._random is not None:
                self._set_random(self._random)
            yield
            self._random = self._get_random()

    @property
    def _cuda_devices(self) -> list[int]:
        return [torch.cuda.current_device()] if self._device.type == "cuda" else []

    def _get_random(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda_devices)]

    def _set_random(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda_devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def _now(self) -> float:
        if self._cuda_devices:
            torch.cuda.synchronize()
        return time.perf_counter()
