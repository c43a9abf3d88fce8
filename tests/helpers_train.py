"""Small training runs, and ways to interfere with them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyro.infer import SVI

from dmm_fast.data import Dataset, chorales
from dmm_fast.training import TrainConfig, Trainer
from dmm_fast.training._folder import BEST, LAST
from dmm_fast.training._objective import optimizer_of
from dmm_fast.training._optimizer_state import OptimizerState
from dmm_fast.training._runlog import METRICS
from tests.helpers_graph import RecordedGraphs

STEPS_AN_EPOCH = 3


def small_data() -> Dataset:
    """Data for three mini-batches of ``tiny`` per epoch."""
    return chorales(12, 3, 3, num_steps=(8, 12))


def tiny(out: Path | None = None, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "num_epochs": 4,
        "mini_batch_size": 5,
        "annealing_epochs": 2,
        "z_dim": 4,
        "emission_dim": 5,
        "transition_dim": 6,
        "rnn_dim": 7,
        "eval_frequency": 1,
        "learning_rate": 0.01,
        "tensorboard": False,
        "progress": False,
    }
    return TrainConfig(out=out, **{**settings, **changes})


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that metrics and checkpoints are equal byte for byte."""
    for name in (METRICS, LAST, BEST):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], float | None]) -> None:
    """Call ``act`` after ``step`` gradient steps; a number it returns replaces the loss."""
    done, original = 0, SVI.step

    def counting(self: SVI, *args: Any) -> float:
        nonlocal done
        loss = original(self, *args)
        done += 1
        changed = act() if done == step else None
        return loss if changed is None else changed

    monkeypatch.setattr(SVI, "step", counting)


class GraphedTrainer(Trainer):
    """A trainer that behaves as on a GPU, with graphs simulated on the CPU."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        super().__init__(config, data)
        self.graphs = RecordedGraphs()
        rate = config.scheduled_lr(0, self.num_mini_batches)
        self.optimizer = optimizer_of(dataclasses.replace(config, cuda=True), rate)
        self._optimizer_state = OptimizerState(self.optimizer, self.dmm)
        if self.folder is not None and config.resume:
            self._restore(self.folder)
        self.svi.optim, self.svi._capturer, self.svi.max_graphs = self.optimizer, self.graphs, 8
        self._batches._pads, self._steps_ahead = True, 64
