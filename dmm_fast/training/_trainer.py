"""Training a DMM with ``GraphedSVI``: annealing, evaluation, checkpoints, exact resumption."""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from dmm_fast.check import fail, kind
from dmm_fast.data import ControlledBatch, Dataset, SequenceSet
from dmm_fast.infer import GraphedSVI, evaluate_elbo
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.optim._capturable import set_rate
from dmm_fast.training import _checkpoint as ckpt
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._data import check_data, fingerprint, load_data, widths
from dmm_fast.training._folder import BEST, LAST, RunFolder, check_outputs, settings_of
from dmm_fast.training._interrupt import StopSignals, TrainingInterrupted
from dmm_fast.training._objective import guide_and_elbo
from dmm_fast.training._optimizer_state import fit_to_model, in_order
from dmm_fast.training._recovery import MOST_RECOVERIES, Progress, Recovery
from dmm_fast.training._runlog import RunLog, logger

_EVALUATION_SEED = 1

# On a GPU the host runs this many steps ahead at most before it waits for their losses. States to go back
# to are kept as often, everywhere.
_STEPS_AHEAD = 64
_MOST_GRAPHS = 32


class NonFiniteLossError(ValueError):
    """The loss became infinite or not a number; the checkpoints of before are kept."""


def train(config: TrainConfig, data: Dataset | None = None) -> DMM:
    """Train a DMM as ``config`` says and return it; see :class:`Trainer`."""
    trainer = Trainer(config, data)
    trainer.run()
    return trainer.dmm


class Trainer:
    """A training run. Making it loads the data and, with ``config.resume``, the checkpoint.

    Nothing is written before :meth:`run`, and a run has no checkpoint before its first step is done.

    The global state it touches: Pyro's parameter store is cleared, and torch's random generators
    are seeded, drawn from and, on resume, restored. On a CPU with as many threads as before, a
    resumed run has the same bits as one that never stopped.

    Args:
        config: the settings.
        data: what to train on; by default what ``config.data`` names.

    Raises:
        TypeError: an argument is of another type.
        ValueError: CUDA is asked for and not there; the data are none for ``emission``; ``out`` already
            holds a run and ``resume`` is not set; or, when resuming, settings or data differ from the
            checkpoint's.
        FileNotFoundError: a file to start or to resume from does not exist.
        OSError: what is to be written cannot be.
        CheckpointError: a file to start or to resume from is no checkpoint, or of other sizes.
    """

    def __init__(self, config: TrainConfig, data: Dataset | None = None) -> None:
        kind("config", config, TrainConfig)
        if config.cuda and not torch.cuda.is_available():
            fail("cuda", "a CUDA device", "torch.cuda.is_available() is False")
        check_outputs(config)
        data = load_data(config) if data is None else data
        check_data(data, config.emission)
        self.config = config
        self.folder = None if config.out is None else RunFolder(config.out)
        self.data = data.to("cuda" if config.cuda else "cpu")
        self.num_mini_batches = math.ceil(len(data.train) / config.mini_batch_size)
        self.progress = Progress()
        # On the host, so that choosing T for a batch on a GPU waits for nothing.
        self._lengths = data.train.lengths.cpu()
        self._num_time_steps = data.train.num_time_steps
        self._fingerprint = fingerprint(data)
        self._optimizer_state: dict[str, Any] = {}

        pyro.clear_param_store()
        pyro.set_rng_seed(config.seed)
        self._sizes = config.sizes(*widths(data.train))
        self.dmm = DMM(**self._sizes, use_cuda=config.cuda)
        rate = config.scheduled_lr(0, self.num_mini_batches)
        self._recovery = Recovery(self.dmm, rate)
        self.optimizer = PyroClippedAdam(
            {
                "lr": rate,
                "betas": (config.beta1, config.beta2),
                "clip_norm": config.clip_norm,
                "lrd": config.lr_decay,
                "weight_decay": config.weight_decay,
                **({"capturable": True} if config.cuda else {}),
            }
        )
        # Enumeration asks for the values of a step while it makes it.
        self._graphed = config.cuda and config.elbo in ("trace", "mean_field")
        guide, elbo = guide_and_elbo(self.dmm, config)
        self.svi = GraphedSVI(
            self.dmm.model,
            guide,
            self.optimizer,
            elbo,
            gather=self._gather,
            max_graphs=_MOST_GRAPHS if self._graphed else 0,
        )
        # Losses that are still on the device, each with the time steps of its mini-batch.
        self._unread: list[tuple[Tensor, int]] = []
        self._steps_ahead = _STEPS_AHEAD if config.cuda else 1
        self._start()

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the run, those before a resumption included."""
        return self.progress.epoch * self.num_mini_batches + self.progress.step

    def run(self) -> None:
        """Train up to ``config.num_epochs``.

        Raises:
            NonFiniteLossError: the loss is no finite number; nothing is saved after that.
            TrainingInterrupted: SIGINT, SIGTERM or SIGHUP came; the state after the current step is saved.
            ValueError: another process trains in ``out``, or has done so since this was made.
            OSError: a file cannot be written; the error names it, and the earlier one is whole.
        """
        config = self.config
        with self.folder or nullcontext():
            self._announce()
            log = RunLog(
                config.out,
                tensorboard=config.tensorboard,
                progress=config.progress,
                total_steps=config.num_epochs * self.num_mini_batches,
                first_step=self.steps_done,
                first_epoch=self.progress.epoch,
                metrics_bytes=self.progress.metrics_bytes,
            )
            with log, StopSignals() as stop:
                if self.steps_done == 0:
                    self._keep()
                while self.progress.epoch < config.num_epochs:
                    self._step(log)
                    if self.progress.step == self.num_mini_batches:
                        self._finish_epoch(log)
                    elif self.progress.step % _STEPS_AHEAD == 0:
                        self._keep()
                    if self.steps_done == 1:
                        self._read_losses(log)
                        self._save(LAST)
                    if stop.received is not None:
                        self._read_losses(log)
                        self._interrupt(stop.received)
                self._save_plain()

    def _announce(self) -> None:
        now, config = self.progress, self.config
        if self.folder is not None and config.resume:
            logger.info("resuming %s after %d epochs and %d steps", self.folder.last, now.epoch, now.step)
            self.folder.warn_of_best()
        if not (config.out or config.save_model or config.save_opt):
            logger.info("nothing of this run will be kept: neither out nor save_model nor save_opt is given")
        logger.info(
            "N_train_data: %d     avg. training seq. length: %.2f    N_mini_batches: %d",
            len(self._lengths),
            self._num_time_steps / len(self._lengths),
            self.num_mini_batches,
        )

    def _start(self) -> None:
        """Begin anew, from given parameters, or where a checkpoint left off."""
        config = self.config
        if config.is_standardized and config.load_model is None and not config.resume:
            self.dmm.standardize(self.data.train.sequences, self.data.train.lengths)
        if config.load_model is not None:
            ckpt.load_model(config.load_model, self.dmm)
        if config.load_opt is not None:
            self._set_optimizer_state(config.load_opt, ckpt.load_optimizer(config.load_opt))
        if self.folder is not None and config.resume:
            self._restore(self.folder)
        elif self.folder is not None:
            self.folder.refuse_a_run()

    def _restore(self, folder: RunFolder) -> None:
        saved = folder.load()
        self._check_same_run(folder.last, saved)
        ckpt.load_state(folder.last, self.dmm, saved.model)
        self._set_optimizer_state(folder.last, saved.optimizer)
        for field in dataclasses.fields(Progress):
            setattr(self.progress, field.name, getattr(saved, field.name))
        if self.config.recover:
            self._recovery.load(folder.last, saved.recovery)
        torch.set_rng_state(saved.rng["cpu"])
        if self.config.cuda:
            torch.cuda.set_rng_state(saved.rng["cuda"])

    def _check_same_run(self, path: Path, saved: ckpt.Checkpoint) -> None:
        """Refuse to go on with settings, sizes or data other than those of the checkpoint."""
        pairs = ((self.config.kept(), settings_of(path, saved).kept()), (self._sizes, saved.sizes))
        for given, kept in pairs:
            for name in [*given, *sorted(kept.keys() - given.keys())]:
                if given.get(name) != kept.get(name):
                    fail(name, f"{kept.get(name)!r}, as in {path}", repr(given.get(name)))
        if self._fingerprint != saved.data:
            fail("data", f"the data {path} was trained on ({saved.data})", self._fingerprint)
        rows = len(self._lengths) if saved.order is None else len(saved.order)
        if not 0 <= saved.step < self.num_mini_batches or rows != len(self._lengths):
            expected = f"a step below {self.num_mini_batches} in an order of {len(self._lengths)} sequences"
            fail(str(path), expected, f"step {saved.step} in one of {rows}", ckpt.CheckpointError)

    def _set_optimizer_state(self, path: Path, state: dict[str, Any]) -> None:
        # A checkpoint of before the first step has no state yet.
        state = fit_to_model(path, state, self.dmm) if state else {}
        self.optimizer.set_state(state)
        # The optimizer takes it parameter by parameter at the first step; until then it is here.
        self._optimizer_state = state

    def _step(self, log: RunLog) -> None:
        """Take a gradient step on the next mini-batch."""
        now, config = self.progress, self.config
        if now.order is None:
            now.order = torch.randperm(len(self._lengths))
        start = now.step * config.mini_batch_size
        indices = now.order[start : start + config.mini_batch_size]
        lengths = self._lengths[indices]
        # Longest first, ties as in Pyro's example: the same seed then pairs the same noise with
        # the same sequences, and a CPU kernel drops rows as sequences end.
        indices = indices[torch.sort(lengths).indices.flip(0)]
        if config.is_scheduled:
            rate = config.scheduled_lr(self.steps_done, self.num_mini_batches)
            self._set_learning_rate(rate * self._recovery.rate_factor)
        T = int(lengths.max())
        if config.cuda:
            # From pinned memory the copy waits for nothing.
            indices = indices.pin_memory().to(self.data.train.sequences.device, non_blocking=True)
        if self._graphed:
            T = self.data.train.padded_steps(T)
        factor = config.annealing_factor(now.epoch, now.step, self.num_mini_batches)
        # Of the sites of single steps Pyro refuses a distribution with NaN; the loss tells that here.
        with pyro.validation_enabled(False) if self.dmm.per_step_sites else nullcontext():
            loss = self.svi.step(indices, T, factor)
        self._unread.append((loss, int(lengths.sum())))
        now.step += 1
        if now.step % self._steps_ahead == 0 or now.step == self.num_mini_batches:
            self._read_losses(log)

    def _gather(self, indices: Tensor, T: int, factor: float | Tensor) -> tuple[Any, ...]:
        """The arguments of model and guide, gathered where the data are."""
        batch = self.data.train.batch(indices, T)
        if isinstance(batch, ControlledBatch):
            return batch._replace(annealing_factor=factor)
        return (*batch, factor)

    def _read_losses(self, log: RunLog) -> None:
        """Wait for the steps done so far, and look at their losses."""
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
        """Recover from a loss that is no finite number, if that was asked for and can be done."""
        now, recovery = self.progress, self._recovery
        where = f"got {loss} in epoch {now.epoch}, step {step}"
        may_recover = self.config.recover and recovery.times < MOST_RECOVERIES
        if not may_recover or not recovery.go_back(self.optimizer, now.epoch, step, now):
            has_earlier = self.folder is not None and self.folder.last.exists()
            kept = f"; {self.folder.last} is of before" if self.folder is not None and has_earlier else ""
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
        # Before the metrics of the steps taken back go: a checkpoint may not know of more than there are.
        self._save(LAST)
        log.go_back(self.steps_done, now.epoch, now.metrics_bytes)

    def _keep(self) -> None:
        """Keep the state there is now, to go back to if the run is to recover."""
        if self.config.recover:
            self._recovery.keep(self.progress, self._state_of_optimizer())

    def _state_of_optimizer(self) -> dict[str, Any]:
        """The optimizer's state by parameter, with its keys in the same order in each process."""
        state = {**self._optimizer_state, **self.optimizer.get_state()}
        if self.steps_done == 0 and not self._optimizer_state:
            # After a return to the start the rates alone are left.
            state = {name: {**each, "state": {}} for name, each in state.items()}
        return in_order(state)

    def _set_learning_rate(self, lr: float) -> None:
        """Set the rate of each parameter's optimizer, or of the state they are to start from."""
        optimizers = list(self.optimizer.optim_objs.values())
        states = [optimizer.param_groups for optimizer in optimizers] or [
            state["param_groups"] for state in self._optimizer_state.values()
        ]
        for groups in states:
            for group in groups:
                set_rate(group, lr)

    def _finish_epoch(self, log: RunLog) -> None:
        now, config = self.progress, self.config
        line: dict[str, float] = {
            "epoch": now.epoch,
            "train": now.epoch_loss / self._num_time_steps,
            "annealing_factor": config.annealing_factor(now.epoch, now.step - 1, self.num_mini_batches),
            "learning_rate": float(next(iter(self.optimizer.optim_objs.values())).param_groups[0]["lr"]),
        }
        done = now.epoch + 1
        is_last = done == config.num_epochs
        every = config.eval_frequency
        if every > 0 and (is_last or (now.epoch > 0 and now.epoch % every == 0)):
            line["valid"] = self._evaluate(self.data.valid)
            line["test"] = self._evaluate(self.data.test)
        log.epoch(line)
        now.epoch, now.step, now.order, now.epoch_loss = done, 0, None, 0.0
        now.metrics_bytes = log.metrics_bytes
        self._keep()
        valid = line.get("valid", math.nan)
        if math.isfinite(valid) and (now.best is None or valid < now.best):
            now.best = valid
            self._save(BEST)
        if is_last or (config.checkpoint_freq > 0 and done % config.checkpoint_freq == 0):
            self._save(LAST)
            self._save_plain()

    def _evaluate(self, sequences: SequenceSet) -> float:
        """Negative ELBO in nats per time step, on noise of its own: training never notices."""
        devices = [torch.cuda.current_device()] if self.config.cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_EVALUATION_SEED)
            return evaluate_elbo(self.dmm, sequences).total_over_total

    def _interrupt(self, number: int) -> None:
        now = self.progress
        self._save(LAST)
        self._save_plain()
        how = "nothing to resume from was written; give a folder with --out"
        if self.folder is not None:
            out = shlex.quote(str(self.folder.path))
            how = f"saved {self.folder.last}; go on with: dmm-fast train --resume --out {out}"
        raise TrainingInterrupted(
            f"{signal.Signals(number).name} after {now.epoch} epochs and {now.step} steps: {how}"
        )

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
                sizes=self._sizes,
                config=self.config.saved(),
                data=self._fingerprint,
                model=self.dmm.state_dict(),
                optimizer=self._state_of_optimizer(),
                rng=rng,
                recovery=self._recovery.saved() if self.config.recover else {},
                **vars(self.progress),
            ),
        )

    def _save_plain(self) -> None:
        """Write the model and the optimizer state where ``save_model`` and ``save_opt`` say."""
        if self.config.save_model is not None:
            ckpt.save_model(self.config.save_model, self.dmm)
        if self.config.save_opt is not None:
            ckpt.save_optimizer(self.config.save_opt, self._state_of_optimizer())
