"""Training a DMM with ``GraphedSVI``: annealing, evaluation, checkpoints, exact resumption."""

from __future__ import annotations

import dataclasses
import math
import signal
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pyro
import torch
from torch import Tensor

from dmm_fast.check import fail, kind
from dmm_fast.data import Dataset
from dmm_fast.infer import DataParallel, GraphedSVI, RankLostError
from dmm_fast.model import DMM
from dmm_fast.training import _checkpoint as ckpt
from dmm_fast.training._averaging import Averaging
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._data import check_data, fingerprint, load_data, widths
from dmm_fast.training._evaluation import Evaluation, Patience, is_due
from dmm_fast.training._folder import BEST, LAST, RunFolder, check_outputs
from dmm_fast.training._identity import Identity
from dmm_fast.training._interrupt import StopSignals, TrainingInterrupted
from dmm_fast.training._mini_batches import MiniBatches
from dmm_fast.training._objective import guide_and_elbo, optimizer_of, path_gradient
from dmm_fast.training._optimizer_state import OptimizerState
from dmm_fast.training._processes import agree, check_processes, way_on
from dmm_fast.training._ranges import ENUMERATED
from dmm_fast.training._recovery import MOST_RECOVERIES, Progress, Recovery
from dmm_fast.training._runlog import RunLog, announce, logger

# On a GPU the host queues at most this many steps before it waits for their losses. The states that a run
# can go back to are kept at the same interval, on every device.
_STEPS_AHEAD = 64
_MOST_GRAPHS = 32


class NonFiniteLossError(ValueError):
    """The loss became infinite or NaN; the checkpoints saved before are kept."""


def train(config: TrainConfig, data: Dataset | None = None, *, ranks: DataParallel | None = None) -> DMM:
    """Train a DMM with the settings ``config`` and return it; see :class:`Trainer`.

    Its parameters are those after the last step, or with ``config.average_decay`` their averages. The model
    of the best validation bound is in ``config.out``, as ``best.safetensors``, which :func:`load_dmm` reads.
    """
    trainer = Trainer(config, data, ranks=ranks)
    trainer.run()
    trainer.averaging.adopt()
    return trainer.dmm


class Trainer:
    """A training run. The constructor loads the data and, with ``config.resume``, the checkpoint.

    Nothing is written before :meth:`run` is called, and the first checkpoint is written after the first
    step.

    A run changes global state: Pyro's parameter store is cleared, and torch's random generators are
    seeded, drawn from and, on resume, restored. On a CPU with the same number of threads, a resumed run
    is bitwise equal to one that was never interrupted.

    With ``ranks`` the rows of every mini-batch of ``config.mini_batch_size`` are spread over several
    processes, each of which makes a Trainer with the same settings; rank 0 writes the files. The run is that
    of a single process, but for rounding, so it can be resumed with another number of processes.

    Args:
        config: the settings.
        data: the data set to train on; by default the one that ``config.data`` names.
        ranks: the processes of a data-parallel run; None: this process alone.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: CUDA was requested and is not available, or not for each process; ``emission`` cannot
            produce the data; ``out`` already holds a run and ``resume`` is not set; with several processes,
            ``elbo`` is an enumerated one or mini-batches have fewer rows than there are processes; or, when
            resuming, settings or data differ from the checkpoint's.
        FileNotFoundError: a file to start or to resume from does not exist.
        OSError: an output file cannot be written.
        CheckpointError: a file to start or to resume from is not a checkpoint, or has other sizes.
    """

    def __init__(
        self, config: TrainConfig, data: Dataset | None = None, *, ranks: DataParallel | None = None
    ) -> None:
        kind("config", config, TrainConfig)
        kind("ranks", ranks, DataParallel, type(None))
        # A group of one process is none: nothing has to be agreed on.
        self._ranks = ranks if ranks is not None and ranks.size > 1 else None
        with self._together():
            self._set_up(config, data)

    def _together(self) -> AbstractContextManager[None]:
        """Have all processes end by an error if one of them does."""
        return nullcontext() if self._ranks is None else self._ranks.together()

    def _set_up(self, config: TrainConfig, data: Dataset | None) -> None:
        if config.cuda and not torch.cuda.is_available():
            fail("cuda", "a CUDA device", "torch.cuda.is_available() is False")
        resumed = RunFolder(config.out) if config.resume and config.out is not None else None
        self._out = config.out
        if self._ranks is not None:
            check_processes(config, self._ranks)
            config = config if self._ranks.is_main else config.without_outputs()
        check_outputs(config)
        data = load_data(config) if data is None else data
        check_data(data, config.emission)
        self.folder = None if config.out is None else RunFolder(config.out)
        self.data = data.to("cuda" if config.cuda else "cpu")
        # Enumeration reads values from the device in the middle of a step, which a CUDA graph cannot do.
        is_graphed = config.cuda and config.elbo not in ENUMERATED
        size, steps = config.mini_batch_size, config.segment_steps
        self._batches = MiniBatches(self.data.train, size, steps, pads=is_graphed, ranks=self._ranks)
        self.num_mini_batches = len(self._batches)
        self.config = config = config.in_epochs(self.num_mini_batches)
        self.progress = Progress()
        self._is_main = self._ranks is None or self._ranks.is_main
        self._patience = Patience(config, self.progress, logs=self._is_main)

        pyro.clear_param_store()
        pyro.set_rng_seed(config.seed)
        sizes = config.sizes(*widths(data.train))
        self._identity = Identity(
            config.kept(), sizes, fingerprint(data), self._batches.num_sequences, self.num_mini_batches
        )
        self.dmm = DMM(**sizes, use_cuda=config.cuda)
        rate = config.scheduled_lr(0, self.num_mini_batches)
        self.averaging = Averaging(self.dmm, config.average_decay)
        self._evaluation = Evaluation(self.dmm, self.averaging, config, self._ranks)
        self._recovery = Recovery(self.dmm, self.averaging, rate)
        self.optimizer = optimizer_of(config, rate)
        self._optimizer_state = OptimizerState(self.optimizer, self.dmm)
        guide, elbo = guide_and_elbo(self.dmm, config)
        self.svi = GraphedSVI(
            self.dmm.model,
            guide,
            self.optimizer,
            elbo if self._ranks is None else self._ranks.elbo(elbo),
            gather=self._batches.gather,
            max_graphs=_MOST_GRAPHS if is_graphed else 0,
        )
        # Losses not yet copied to the host, each with the number of time steps in its mini-batch.
        self._unread: list[tuple[Tensor, int]] = []
        self._steps_ahead = _STEPS_AHEAD if config.cuda else 1
        self._start(resumed)

    @property
    def steps_done(self) -> int:
        """Number of steps since the beginning of the run, including those before it was resumed."""
        return self.progress.epoch * self.num_mini_batches + self.progress.step

    def run(self) -> None:
        """Train up to ``config.num_epochs``, or until ``config.patience`` is over.

        Afterwards ``dmm`` has the parameters of the last step, and ``dmm.path_gradient`` is False.

        Raises:
            NonFiniteLossError: the loss is not finite; nothing is saved after that.
            TrainingInterrupted: SIGINT, SIGTERM or SIGHUP was received before the last step; the state after
                the current step is saved.
            ValueError: another process is training in ``out``, or has done so since this object was made.
            OSError: a file cannot be written; the error names it, and the earlier version is intact.
            RankLostError: another process of the run has ended; what was saved before is intact.
        """
        with ExitStack() as entered:
            with self._together():
                log = self._open(entered)
            entered.enter_context(path_gradient(self.dmm, self.config))
            stop = entered.enter_context(StopSignals(twice=self._ranks is None))
            if self._ranks is None:
                self._loop(log, stop)
                return
            try:
                agree(self._ranks, self.config, self.dmm, self.averaging, self._identity, self.progress)
                self._loop(log, stop)
            except RankLostError as error:
                stop.ignore()
                raise RankLostError(f"{error}. {way_on(self._out, self._ranks)}") from error
            except (NonFiniteLossError, TrainingInterrupted):
                # All raise this, and wait until rank 0 has written: torchrun ends the others with the first.
                stop.ignore()
                self._ranks.most(0)
                raise

    def _open(self, entered: ExitStack) -> RunLog:
        """Lock the run's folder and open its log, both until ``entered`` is left."""
        config = self.config
        if self.folder is not None:
            entered.enter_context(self.folder)
        if self.folder is not None and config.resume:
            logger.info(
                "resuming %s after %d epochs and %d steps",
                self.folder.last,
                self.progress.epoch,
                self.progress.step,
            )
            self.folder.warn_of_best()
        if self._is_main:
            announce(config, self._batches)
        self._patience.announce()
        log = RunLog(
            config.out,
            tensorboard=config.tensorboard,
            progress=config.progress,
            total_steps=config.num_epochs * self.num_mini_batches,
            first_step=self.steps_done,
            first_epoch=self.progress.epoch,
            metrics_bytes=self.progress.metrics_bytes,
        )
        return entered.enter_context(log)

    def _loop(self, log: RunLog, stop: StopSignals) -> None:
        if self.steps_done == 0:
            self._keep()
        while not self._is_finished:
            self._step(log)
            if self.progress.step == self.num_mini_batches:
                self._finish_epoch(log)
            elif self.progress.step % _STEPS_AHEAD == 0:
                self._keep()
            if self.steps_done == 1:
                self._read_losses(log)
                self._save(LAST)
            # What asks a run to stop in its last step finds it finished, with nothing left to resume.
            if not self._is_finished and (number := self._stop_requested(stop)) is not None:
                self._read_losses(log)
                self._interrupt(number)
        self._save_plain()

    @property
    def _is_finished(self) -> bool:
        return self.progress.epoch >= self.config.num_epochs or self._patience.is_over

    def _stop_requested(self, stop: StopSignals) -> int | None:
        """The signal after which all processes stop, at the same step: one that any of them received."""
        if self._ranks is None:
            return stop.received
        # On a GPU the losses are read after many steps, and only then do processes wait for each other.
        return None if self._unread else self._ranks.most(stop.received or 0) or None

    def _start(self, resumed: RunFolder | None) -> None:
        """Start from new parameters, from given ones, or from the checkpoint of a run to resume."""
        config = self.config
        if config.is_standardized and config.load_model is None and resumed is None:
            self.dmm.standardize(self.data.train.sequences, self.data.train.lengths)
        if config.load_model is not None:
            ckpt.load_model(config.load_model, self.dmm)
            self.averaging.restart()
        if config.load_opt is not None:
            self._optimizer_state.load(config.load_opt, ckpt.load_optimizer(config.load_opt))
        if resumed is not None:
            self._restore(self.folder or resumed)
        elif self.folder is not None:
            self.folder.refuse_a_run()

    def _restore(self, folder: RunFolder) -> None:
        saved = folder.load()
        self._identity.check_same(folder.last, saved)
        ckpt.load_state(folder.last, self.dmm, saved.model)
        self.averaging.load(folder.last, saved.unaveraged)
        self._optimizer_state.load(folder.last, saved.optimizer)
        for field in dataclasses.fields(Progress):
            setattr(self.progress, field.name, getattr(saved, field.name))
        self._patience.resume(saved.config)
        if self.config.recover:
            self._recovery.load(folder.last, saved.recovery)
        torch.set_rng_state(saved.rng["cpu"])
        if self.config.cuda:
            torch.cuda.set_rng_state(saved.rng["cuda"])

    def _step(self, log: RunLog) -> None:
        """Take a gradient step on the next mini-batch."""
        now, config = self.progress, self.config
        if now.order is None:
            now.order = self._batches.order()
        indices, T, num_time_steps = self._batches.step(now.order, now.step)
        if config.is_scheduled:
            rate = config.scheduled_lr(self.steps_done, self.num_mini_batches)
            rate *= self._recovery.rate_factor
            self._optimizer_state.set_learning_rate(rate)
        factor = config.annealing_factor(now.epoch, now.step, self.num_mini_batches)
        # With one site per time step, Pyro's validation would raise on NaN parameters; here the check of
        # the loss reports them.
        with pyro.validation_enabled(False) if self.dmm.per_step_sites else nullcontext():
            loss = self.svi.step(indices, T, factor)
        self.averaging.update(self.steps_done)
        self._unread.append((loss, num_time_steps))
        now.step += 1
        if now.step % self._steps_ahead == 0 or now.step == self.num_mini_batches:
            self._read_losses(log)

    def _read_losses(self, log: RunLog) -> None:
        """Wait for the steps done so far, and check and log their losses."""
        if not self._unread:
            return
        now = self.progress
        losses = torch.stack([loss for loss, _ in self._unread]).tolist()
        time_steps = [steps for _, steps in self._unread]
        self._unread.clear()
        for step, (loss, steps) in enumerate(zip(losses, time_steps, strict=True), now.step - len(losses)):
            if not math.isfinite(loss):
                self._go_back(log, loss, step)
                return
            now.epoch_loss += loss
            log.step(now.epoch, loss / steps)

    def _go_back(self, log: RunLog, loss: float, step: int) -> None:
        """Recover from a loss that is not finite, if ``config.recover`` is set and a good state exists."""
        now, recovery = self.progress, self._recovery
        where = f"got {loss} in epoch {now.epoch}, step {step}"
        may_recover = self.config.recover and recovery.times < MOST_RECOVERIES
        if not may_recover or not recovery.go_back(self.optimizer, now.epoch, step, now):
            has_earlier = self.folder is not None and self.folder.last.exists()
            kept = f"; {self.folder.last} was saved before" if self.folder is not None and has_earlier else ""
            raise NonFiniteLossError(
                f"loss: expected a finite number, {where}{kept}. "
                "A lower learning rate, or warm-up steps, may help"
            )
        self._keep()
        logger.warning(
            "loss: %s: back to epoch %d, step %d at half the learning rate (%d of at most %d times)",
            where,
            now.epoch,
            now.step,
            recovery.times,
            MOST_RECOVERIES,
        )
        # Save before the metrics of the undone steps are cut off: a checkpoint must not count more bytes of
        # metrics than the file has.
        self._save(LAST)
        log.go_back(self.steps_done, now.epoch, now.metrics_bytes)

    def _keep(self) -> None:
        """Keep the current state, to go back to if a later loss is not finite."""
        if self.config.recover:
            self._recovery.keep(self.progress, self._optimizer_state.now(self.steps_done))

    def _finish_epoch(self, log: RunLog) -> None:
        now, config = self.progress, self.config
        line: dict[str, float] = {
            "epoch": now.epoch,
            "train": now.epoch_loss / self._batches.num_time_steps,
            "annealing_factor": config.annealing_factor(now.epoch, now.step - 1, self.num_mini_batches),
            "learning_rate": float(next(iter(self.optimizer.optim_objs.values())).param_groups[0]["lr"]),
        }
        done = now.epoch + 1
        if is_due(config, now.epoch):
            line |= self._evaluation.measure(self.data)
        log.epoch(line)
        now.epoch, now.step, now.order, now.epoch_loss = done, 0, None, 0.0
        now.metrics_bytes = log.metrics_bytes
        is_best = self._patience.judge(line)
        self._keep()
        if is_best:
            self._save(BEST)
        if self._is_finished or (config.checkpoint_freq > 0 and done % config.checkpoint_freq == 0):
            self._save(LAST)
            self._save_plain()

    def _interrupt(self, number: int) -> None:
        now = self.progress
        self._save(LAST)
        self._save_plain()
        place = f"{signal.Signals(number).name} after {now.epoch} epochs and {now.step} steps"
        raise TrainingInterrupted(f"{place}: {way_on(self._out, self._ranks)}")

    def _save(self, name: str) -> None:
        """Write a checkpoint into the run's folder, if it has one."""
        if self.folder is None:
            return
        rng = {"cpu": torch.get_rng_state()}
        if self.config.cuda:
            rng["cuda"] = torch.cuda.get_rng_state()
        self.folder.save(
            name,
            ckpt.Checkpoint(
                sizes=self._identity.sizes,
                config=self.config.saved(),
                data=self._identity.data,
                model=self.averaging.model(),
                unaveraged=self.averaging.unaveraged(),
                optimizer=self._optimizer_state.now(self.steps_done),
                rng=rng,
                recovery=self._recovery.saved() if self.config.recover else {},
                **vars(self.progress),
            ),
        )

    def _save_plain(self) -> None:
        """Write the model and the optimizer state to ``save_model`` and ``save_opt``, where given."""
        if self.config.save_model is not None:
            with self.averaging.swapped():
                ckpt.save_model(self.config.save_model, self.dmm)
        if self.config.save_opt is not None:
            ckpt.save_optimizer(self.config.save_opt, self._optimizer_state.now(self.steps_done))
