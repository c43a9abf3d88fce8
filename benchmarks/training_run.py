"""Training runs to a target test NLL: a model, its optimizer, and the wall time of its training."""

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
from benchmarks.stepper import OPTIMIZER
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import GraphedSVI, evaluate_elbo, evaluate_importance_nll
from dmm_fast.infer._cuda_graphs import Capturer
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.training import TrainConfig

EVALUATION_SEED, PARTICLES = 1, 100


@dataclass(frozen=True)
class Evaluation:
    """A point of the curve, in nats per time step.

    ``train``, ``valid`` and ``test_elbo`` are negative ELBOs of one draw; ``train`` is the annealed loss over
    the last complete epoch. ``test`` is the NLL by importance sampling with :data:`PARTICLES` draws. The
    negative ELBO is an upper bound of it, a quarter of a nat higher for a DMM trained on the chorales.
    """

    seconds: float
    epoch: int
    step: int
    train: float | None
    valid: float
    test: float
    test_elbo: float


class TrainingStepper(Protocol):
    """Takes the SVI steps of a training run on a data set."""

    @property
    def module(self) -> nn.Module:
        """The trained model; its ``state_dict`` is that of the tutorial."""

    def step(self, indices: Tensor, factor: float) -> Tensor | float:
        """Take an SVI step on the training sequences ``indices``, in any order; returns its loss."""


class TutorialTrainingStepper:
    """Steps as in the tutorial's loop: the mini-batch is made on the host and copied to the GPU."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.module = BaselineDMM(data.train.sequences.shape[-1]).to(device)
        self._train, self._cuda = data.train, device.type == "cuda"
        self._svi = SVI(self.module.model, self.module.guide, ClippedAdam(dict(OPTIMIZER)), Trace_ELBO())

    def step(self, indices: Tensor, factor: float) -> float:
        """Take one SVI step."""
        train = self._train
        batch = tutorial_mini_batch(indices, train.sequences, train.lengths, cuda=self._cuda)
        return float(self._svi.step(*batch, factor))


class FastTrainingStepper:
    """Steps as in ``dmm-fast train``: data and loss stay on the device."""

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
        """Take one SVI step; sequences are sorted by falling length, ties as in the tutorial."""
        lengths = self._lengths[indices]
        indices, longest = indices[torch.sort(lengths).indices.flip(0)], int(lengths.max())
        if self._cuda:
            longest = self._train.padded_steps(longest)
            indices = indices.pin_memory().to(self._train.sequences.device, non_blocking=True)
        return self._svi.step(indices, longest, factor)

    def _gather(self, indices: Tensor, T: int, factor: float | Tensor) -> tuple[Any, ...]:
        return (*self._train.batch(indices, T), factor)


class TrainingRun:
    """The training of one implementation, with random numbers and a parameter store of its own.

    Args:
        name: of its row in the results.
        make: builds its stepper from the data and a device.
        data: data set on the host.
        device: device to train on.
        config: schedule and seed.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Dataset, torch.device], TrainingStepper],
        data: Dataset,
        device: torch.device,
        config: TrainConfig | None = None,
    ) -> None:
        self.name, self.config = name, config or TrainConfig()
        self.epoch = self.steps = 0
        self.seconds = 0.0
        self.curve: list[Evaluation] = []
        self.ms: list[float] = []  # mean duration of a step, for each part of an epoch
        self._train, self._device = data.train, device
        self._valid, self._test = data.valid.to(device), data.test.to(device)
        self._to_do: list[Tensor] = []
        self._losses: list[Tensor | float] = []
        self._nats_of_epoch: float | None = None
        self._store: Any = None
        self._random: list[Tensor] | None = None
        with self._active():
            self._evaluated = DMM(data.train.sequences.shape[-1]).to(device).eval()
            pyro.set_rng_seed(self.config.seed)
            self._stepper = make(data, device)

    @property
    def num_mini_batches(self) -> int:
        """The number of SVI steps per epoch."""
        return -(-len(self._train) // self.config.mini_batch_size)

    def train(self, seconds: float, epochs: float = math.inf) -> None:
        """Train for ``seconds``, rounded up to whole steps, or until ``epochs`` are complete."""
        end = self.seconds + seconds
        with self._active():
            while self.seconds < end and self.epoch < epochs:
                if self._train_until(end):
                    self._finish_epoch()

    def evaluate(self) -> None:
        """Add a point to the curve; its time does not count as training."""
        self._evaluated.load_state_dict(self._stepper.module.state_dict())
        with torch.no_grad(), torch.random.fork_rng(devices=self._cuda_devices):
            valid, elbo = self._negative_elbo(self._valid), self._negative_elbo(self._test)
            nll = evaluate_importance_nll(self._evaluated, self._test, PARTICLES, PARTICLES).total_over_total
        point = Evaluation(self.seconds, self.epoch, self.steps, self._nats_of_epoch, valid, nll, elbo)
        self.curve.append(point)

    def _train_until(self, end: float) -> bool:
        """Step until ``end`` or the end of the epoch; returns True at the end of the epoch."""
        if not self._to_do:
            self._to_do = list(torch.randperm(len(self._train)).split(self.config.mini_batch_size))
        start, steps, elapsed = self._now(), self.steps, 0.0
        while self._to_do and self.seconds + elapsed < end:
            self._step()
            elapsed = (
                time.perf_counter() - start
            )  # time of the host, which is not synchronised after each step
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
        return evaluate_elbo(self._evaluated, sequences).total_over_total

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Make the parameter store and random numbers of this run the current ones."""
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
