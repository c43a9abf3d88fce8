"""Evaluation of a model in training on validation and test data, and early stopping by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import DataParallel, ElboEvaluation, evaluate_elbo
from dmm_fast.model import DMM
from dmm_fast.training._averaging import Averaging
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._recovery import Progress
from dmm_fast.training._runlog import logger

_SEED = 1
_MINI_BATCH_SIZE = 64

_ENDS = ("num_epochs", "eval_frequency", "patience")
"""Settings at which a run ends."""


def is_due(config: TrainConfig, epoch: int) -> bool:
    """True if the model is to be evaluated after ``epoch``, counted from 0."""
    every = config.eval_frequency
    return every > 0 and (epoch + 1 == config.num_epochs or (epoch > 0 and epoch % every == 0))


class Patience:
    """Early stopping: a run ends after ``config.patience`` evaluations without a better validation bound.

    Args:
        config: the settings of the run.
        progress: the position in training, of which ``best`` and ``waited`` are updated here.
        logs: log the end of the run; False in all processes of a run but one.
    """

    def __init__(self, config: TrainConfig, progress: Progress, *, logs: bool) -> None:
        self._config, self._progress, self._logs = config, progress, logs
        self.is_over = False

    def judge(self, line: Mapping[str, float]) -> bool:
        """Take the metrics of an epoch into account; True if its model is the best so far.

        A bound that is not finite is no better one.
        """
        if "valid" not in line:
            return False
        now, valid = self._progress, line["valid"]
        if math.isfinite(valid) and (now.best is None or valid < now.best):
            now.best, now.waited = valid, 0
            return True
        now.waited += 1
        if 0 < self._config.patience <= now.waited:
            self.is_over = True
            self._log(f"stopped after epoch {line['epoch']:.0f}: {self._reason()}")
        return False

    def resume(self, saved: Mapping[str, object]) -> None:
        """Find out, from the settings of a checkpoint, whether the run has already been stopped.

        It has if patience, number of epochs and frequency of evaluations are those given now. With others it
        goes on: by a higher patience as if this had been the run's from the start, else to the next
        evaluation, which is then decisive.
        """
        now, patience = self._progress, self._config.patience
        if not 0 < patience <= now.waited:
            return
        if all(saved.get(name) == getattr(self._config, name) for name in _ENDS):
            self.is_over = True
        else:
            now.waited = patience - 1

    def announce(self) -> None:
        """Log that a resumed run is finished, if it is."""
        if self.is_over:
            self._log(f"the run is finished: {self._reason()}; a higher patience continues it")
        elif self._progress.epoch >= self._config.num_epochs:
            self._log(f"the run is finished: all of its {self._config.num_epochs} epochs are done")

    def _log(self, message: str) -> None:
        if self._logs:
            logger.info("%s", message)

    def _reason(self) -> str:
        now = self._progress
        best = "a finite validation bound" if now.best is None else f"a validation bound below {now.best:.4f}"
        return f"{now.waited} evaluations without {best} (patience {self._config.patience})"


class Evaluation:
    """The negative ELBO of validation and test data, with the averaged parameters where a run has them.

    Args:
        dmm: the model in training.
        averaging: the averages of its parameters.
        config: the settings of the run.
        ranks: the processes that share the work; None: this process alone.
    """

    def __init__(
        self, dmm: DMM, averaging: Averaging, config: TrainConfig, ranks: DataParallel | None
    ) -> None:
        self._dmm, self._averaging, self._config, self._ranks = dmm, averaging, config, ranks

    def measure(self, data: Dataset) -> dict[str, float]:
        """Entries of the metrics, in nats per time step.

        ``valid`` and ``test`` are sums over all sequences divided by their numbers of time steps,
        ``valid_mean`` and ``test_mean`` the means of the averages of each sequence.
        """
        with self._averaging.swapped():
            valid, test = self._nats(data.valid), self._nats(data.test)
        return {
            "valid": valid.total_over_total,
            "test": test.total_over_total,
            "valid_mean": valid.mean_of_averages,
            "test_mean": test.mean_of_averages,
        }

    def _nats(self, sequences: SequenceSet) -> ElboEvaluation:
        """The negative ELBO; the random generators of training are left unchanged."""
        draws = self._config.evaluation_particles
        devices = [torch.cuda.current_device()] if self._config.cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_SEED)
            # With more draws fewer sequences at a time, so that they take no more memory.
            size = max(1, _MINI_BATCH_SIZE // draws)
            return evaluate_elbo(self._dmm, sequences, draws, size, ranks=self._ranks)
