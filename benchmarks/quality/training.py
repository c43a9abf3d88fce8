"""Training within a time budget, with a journal of its wall time."""

import dataclasses
import math
import signal
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.quality.journal import BUDGET, EPOCHS, PATIENCE, SIGNAL, Journal
from benchmarks.quality.settings import limits
from dmm_fast.data import Dataset
from dmm_fast.training import TrainConfig, Trainer, TrainingInterrupted
from dmm_fast.training._folder import LAST
from dmm_fast.training._interrupt import StopSignals
from dmm_fast.training._runlog import RunLog

# Seconds between lines of progress.
EVERY = 30.0


class BudgetedTrainer(Trainer):
    """A trainer that notes the wall time of each epoch and stops between two steps when its time is over.

    The time includes evaluations and checkpoints. It begins with :meth:`run`, when the data have been loaded.

    Args:
        config: the settings; ``out`` is the folder of the run.
        data: the data set.
        seconds: wall time of this session.
        meta: facts about the machine.
    """

    def __init__(self, config: TrainConfig, data: Dataset, seconds: float, meta: Mapping[str, Any]) -> None:
        super().__init__(config, data)
        if config.out is None:
            raise ValueError("out: expected a folder, got None")
        self.is_over = False
        self._name, self._budget, self._meta = config.out.name, seconds, {"meta": dict(meta)}
        self._journal = Journal(config.out)

    def run(self) -> None:
        """Train until the run ends by itself or the time is over.

        Raises:
            TrainingInterrupted: the time is over, in which case ``is_over`` is set, or a signal was received;
                the state is saved.
        """
        self._journal.go_back(self.steps_done)
        self._before, self._begun = self._journal.seconds, time.monotonic()
        self._told = self._begun
        try:
            super().run()
        except TrainingInterrupted:
            self._note(BUDGET if self.is_over else SIGNAL)
            raise
        self._note(EPOCHS if self.progress.epoch >= self.config.num_epochs else PATIENCE)

    def _finish_epoch(self, log: RunLog) -> None:
        super()._finish_epoch(log)
        self._note()
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told, best = now, self.progress.best
            bound = "not evaluated yet" if best is None else f"best validation bound {best:.3f}"
            print(f"  {self._name}: {self.progress.epoch} epochs, {bound}", flush=True)

    def _stop_requested(self, stop: StopSignals) -> int | None:
        number = super()._stop_requested(stop)
        self.is_over = number is None and time.monotonic() - self._begun >= self._budget
        return signal.SIGTERM if self.is_over else number

    def _note(self, ended: str | None = None) -> None:
        more = {} if ended is None else {"ended": ended, "limits": limits(self.config)}
        seconds = self._before + time.monotonic() - self._begun
        self._journal.add(self.steps_done, seconds, **self._meta, **more)
        self._meta = {}


def train(
    config: TrainConfig, data: Dataset, seconds: float = math.inf, meta: Mapping[str, Any] | None = None
) -> str:
    """Train in ``config.out``, from its last checkpoint if it has one; returns why training ended.

    Args:
        config: the settings.
        data: the data set.
        seconds: wall time, after which the state is saved.
        meta: facts about the machine, for the journal.

    Raises:
        NonFiniteLossError: the loss is not finite.
        ValueError: the folder holds a run with other settings or data.
        OSError: a file cannot be written.
    """
    resumed = config.out is not None and (config.out / LAST).exists()
    trainer = BudgetedTrainer(dataclasses.replace(config, resume=resumed), data, seconds, meta or {})
    try:
        trainer.run()
    except TrainingInterrupted:
        return BUDGET if trainer.is_over else SIGNAL
    return EPOCHS if trainer.progress.epoch >= config.num_epochs else PATIENCE
