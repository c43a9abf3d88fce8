"""Training a DMM with ``GraphedSVI``: annealing, evaluation, checkpoints, exact resumption."""

from __future__ import annotations

import dataclasses
import math
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer import config_enumerate as enumerate_sites
from torch import Tensor

from dmm_fast import checkpoint as ckpt
from dmm_fast import data as datasets
from dmm_fast.capturable import set_rate
from dmm_fast.check import fail
from dmm_fast.config import PACE_FIELDS, TrainConfig
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import GraphedSVI, evaluate_elbo
from dmm_fast.interrupt import StopSignals, TrainingInterrupted
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.runlog import METRICS, RunLog, logger

LAST = "last.safetensors"
BEST = "best.safetensors"

_EVALUATION_SEED = 1

# On a GPU the host runs this many steps ahead at most before it waits for their losses.
_STEPS_AHEAD = 64
_MOST_GRAPHS = 32


class NonFiniteLossError(ValueError):
    """The loss became infinite or not a number; the checkpoints of before are kept."""


@dataclasses.dataclass
class _Progress:
    """Where training stands; the fields are those of :class:`~dmm_fast.checkpoint.Checkpoint`."""

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    epoch_loss: float = 0.0
    best: float | None = None
    metrics_bytes: int = 0


def train(config: TrainConfig, data: Dataset | None = None) -> DMM:
    """Train a DMM as ``config`` says and return it; see :class:`Trainer`."""
    trainer = Trainer(config, data)
    trainer.run()
    return trainer.dmm


class Trainer:
    """One training run. Making it loads the data and, with ``config.resume``, the checkpoint.

    The global state it touches: Pyro's parameter store is cleared, and torch's random generators
    are seeded, drawn from and, on resume, restored. On a CPU with as many threads as before, a
    resumed run has the same bits as one that never stopped.

    Args:
        config: the settings.
        data: what to train on; by default what ``config.data`` names.

    Raises:
        ValueError: CUDA is asked for and not there; ``out`` already holds a run and ``resume`` is
            not set; or, when resuming, settings or data differ from the checkpoint's.
        FileNotFoundError: a file to start or to resume from does not exist.
        CheckpointError: a file to start or to resume from is no checkpoint, or of other sizes.
    """

    def __init__(self, config: TrainConfig, data: Dataset | None = None) -> None:
        if config.cuda and not torch.cuda.is_available():
            fail("cuda", "a CUDA device", "torch.cuda.is_available() is False")
        data = load_data(config) if data is None else data
        self.config = config
        self.data = data.to("cuda" if config.cuda else "cpu")
        self.num_mini_batches = math.ceil(len(data.train) / config.mini_batch_size)
        self.progress = _Progress()
        # On the host, so that choosing T for a batch on a GPU waits for nothing.
        self._lengths = data.train.lengths.cpu()
        self._num_time_steps = data.train.num_time_steps
        self._fingerprint = fingerprint(data)
        self._optimizer_state: dict[str, Any] = {}

        pyro.clear_param_store()
        pyro.set_rng_seed(config.seed)
        self._sizes = config.sizes(data.train.sequences.shape[-1])
        self.dmm = DMM(**self._sizes, use_cuda=config.cuda)
        self.optimizer = PyroClippedAdam(
            {
                "lr": config.scheduled_lr(0, self.num_mini_batches),
                "betas": (config.beta1, config.beta2),
                "clip_norm": config.clip_norm,
                "lrd": config.lr_decay,
                "weight_decay": config.weight_decay,
                **({"capturable": True} if config.cuda else {}),
            }
        )
        # Enumeration asks for the values of a step while it makes it.
        self._graphed = config.cuda and config.elbo in ("trace", "mean_field")
        guide, elbo = _guide_and_elbo(self.dmm, config)
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
            TrainingInterrupted: SIGINT or SIGTERM came; the state after the current step is saved.
        """
        config = self.config
        if self.steps_done == 0:
            self._save(LAST)
        logger.info(
            "N_train_data: %d     avg. training seq. length: %.2f    N_mini_batches: %d",
            len(self._lengths),
            self._num_time_steps / len(self._lengths),
            self.num_mini_batches,
        )
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
            while self.progress.epoch < config.num_epochs:
                self._step(log)
                if self.progress.step == self.num_mini_batches:
                    self._finish_epoch(log)
                if stop.received is not None:
                    self._read_losses(log)
                    self._interrupt(stop.received)
            self._save_plain()

    def _start(self) -> None:
        """Begin anew, from given parameters, or where a checkpoint left off."""
        config = self.config
        if config.load_model is not None:
            ckpt.load_model(config.load_model, self.dmm)
        if config.load_opt is not None:
            self._set_optimizer_state(config.load_opt, ckpt.load_optimizer(config.load_opt))
        if config.out is None:
            return
        last = config.out / LAST
        if config.resume:
            self._restore(last)
            return
        config.out.mkdir(parents=True, exist_ok=True)
        for name in (LAST, METRICS):
            if (config.out / name).exists():
                fail("out", "a folder without a run, or resume", f"{config.out}, which has {name}")

    def _restore(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected a checkpoint to resume from, found none")
        # A process killed while it wrote leaves what it had written so far.
        for half_written in path.parent.glob(".*.safetensors.*.part"):
            half_written.unlink()
        saved = ckpt.load(path)
        self._check_same_run(path, saved)
        ckpt.load_state(path, self.dmm, saved.model)
        self._set_optimizer_state(path, saved.optimizer)
        for field in dataclasses.fields(_Progress):
            setattr(self.progress, field.name, getattr(saved, field.name))
        torch.set_rng_state(saved.rng["cpu"])
        if self.config.cuda:
            torch.cuda.set_rng_state(saved.rng["cuda"])
        logger.info("resuming %s after %d epochs and %d steps", path, saved.epoch, saved.step)

    def _check_same_run(self, path: Path, saved: ckpt.Checkpoint) -> None:
        """Refuse to go on with settings, sizes or data other than those of the checkpoint."""
        config = self.config.kept()
        saved_config = {k: v for k, v in saved.config.items() if k in config or k not in PACE_FIELDS}
        for given, kept in ((config, saved_config), (self._sizes, saved.sizes)):
            for name in given.keys() | kept.keys():
                if given.get(name) != kept.get(name):
                    fail(name, f"{kept.get(name)!r}, as in {path}", repr(given.get(name)))
        if self._fingerprint != saved.data:
            fail("data", f"the data {path} was trained on ({saved.data})", self._fingerprint)

    def _set_optimizer_state(self, path: Path, state: dict[str, Any]) -> None:
        names = {f"dmm$$${name}" for name, _ in self.dmm.named_parameters()}
        # A checkpoint of before the first step has no state yet.
        if state and state.keys() != names:
            strange = sorted(state.keys() ^ names)
            raise ckpt.CheckpointError(
                f"{path}: expected an optimizer state for the parameters of this DMM, got one that "
                f"differs in {', '.join(strange[:3])}"
            )
        self.optimizer.set_state(state)
        # The optimizer takes it parameter by parameter at the first step; until then it is here.
        self._optimizer_state = state

    def _step(self, log: RunLog) -> None:
        """One gradient step on the next mini-batch."""
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
            self._set_learning_rate(config.scheduled_lr(self.steps_done, self.num_mini_batches))
        T = int(lengths.max())
        if config.cuda:
            # From pinned memory the copy waits for nothing.
            indices = indices.pin_memory().to(self.data.train.sequences.device, non_blocking=True)
        if self._graphed:
            T = self.data.train.padded_steps(T)
        factor = config.annealing_factor(now.epoch, now.step, self.num_mini_batches)
        self._unread.append((self.svi.step(indices, T, factor), int(lengths.sum())))
        now.step += 1
        if len(self._unread) == self._steps_ahead or now.step == self.num_mini_batches:
            self._read_losses(log)

    def _gather(self, indices: Tensor, T: int, factor: float | Tensor) -> tuple[Any, ...]:
        """The arguments of model and guide, gathered where the data are."""
        return (*self.data.train.batch(indices, T), factor)

    def _read_losses(self, log: RunLog) -> None:
        """Wait for the steps done so far, and look at their losses."""
        if not self._unread:
            return
        now, config = self.progress, self.config
        losses = torch.stack([loss for loss, _ in self._unread]).tolist()
        first = now.step - len(losses)
        for step, (loss, (_, time_steps)) in enumerate(zip(losses, self._unread, strict=True), first):
            if not math.isfinite(loss):
                kept = f"; {config.out / LAST} is of before" if config.out is not None else ""
                raise NonFiniteLossError(
                    f"loss: expected a finite number, got {loss} in epoch {now.epoch}, step {step}"
                    f"{kept}. A lower learning rate, or warm-up steps, may help"
                )
            now.epoch_loss += loss
            log.step(now.epoch, loss / time_steps)
        self._unread.clear()

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
        if "valid" in line and (now.best is None or line["valid"] < now.best):
            now.best = line["valid"]
            self._save(BEST)
        if is_last or (config.checkpoint_freq > 0 and done % config.checkpoint_freq == 0):
            self._save(LAST)
            self._save_plain()

    def _evaluate(self, sequences: SequenceSet) -> float:
        """Negative ELBO in nats per time step, on noise of its own: training never notices."""
        devices = [torch.cuda.current_device()] if self.config.cuda else []
        self.dmm.eval()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_EVALUATION_SEED)
            result = evaluate_elbo(self.dmm, sequences)
        self.dmm.train()
        return result.total_over_total

    def _interrupt(self, number: int) -> None:
        now, out = self.progress, self.config.out
        self._save(LAST)
        self._save_plain()
        how = (
            "nothing to resume from was written; give a folder with --out"
            if out is None
            else f"saved {out / LAST}; go on with: dmm-fast train --resume --out {out}"
        )
        raise TrainingInterrupted(
            f"{signal.Signals(number).name} after {now.epoch} epochs and {now.step} steps: {how}"
        )

    def _save(self, name: str) -> None:
        """Write a checkpoint into the run's folder, if it has one."""
        if self.config.out is None:
            return
        rng = {"cpu": torch.get_rng_state()}
        if self.config.cuda:
            rng["cuda"] = torch.cuda.get_rng_state()
        ckpt.save(
            self.config.out / name,
            ckpt.Checkpoint(
                sizes=self._sizes,
                config=self.config.saved(),
                data=self._fingerprint,
                model=self.dmm.state_dict(),
                optimizer={**self._optimizer_state, **self.optimizer.get_state()},
                rng=rng,
                **vars(self.progress),
            ),
        )

    def _save_plain(self) -> None:
        """Write the model and the optimizer state where ``save_model`` and ``save_opt`` say."""
        if self.config.save_model is not None:
            ckpt.save_model(self.config.save_model, self.dmm)
        if self.config.save_opt is not None:
            state = {**self._optimizer_state, **self.optimizer.get_state()}
            ckpt.save_optimizer(self.config.save_opt, state)


def load_data(config: TrainConfig) -> Dataset:
    """The data set that ``config.data`` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no data set, or ``num_sequences`` is given with a file.
    """
    if config.data != "chorales":
        if config.num_sequences is not None:
            fail("num_sequences", "None with a data file", str(config.num_sequences))
        return datasets.load(config.data)
    if config.num_sequences is None:
        return datasets.chorales()
    held_out = max(1, config.num_sequences // 3)
    return datasets.chorales(num_train=config.num_sequences, num_valid=held_out, num_test=held_out)


def fingerprint(data: Dataset) -> str:
    """A data set's name, sizes and CRC-32, to tell it from another."""
    crc = 0
    for split in (data.train, data.valid, data.test):
        for tensor in (split.sequences, split.lengths):
            crc = zlib.crc32(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return f"{data.name}, {len(data.train)} sequences, CRC-32 {crc:08x}"


def _guide_and_elbo(dmm: DMM, config: TrainConfig) -> tuple[Callable[..., Any], ELBO]:
    """The ELBO that ``config.elbo`` names, and the guide as it takes it."""
    if config.elbo == "trace":
        return dmm.guide, Trace_ELBO()
    if config.elbo == "mean_field":
        return dmm.guide, TraceMeanField_ELBO()
    # Left to find the nesting itself, Pyro runs the model once, which would draw random numbers
    # at the first step of every process and so make a resumed run another one.
    kind = TraceTMC_ELBO if config.elbo == "tmc" else TraceEnum_ELBO
    guide = enumerate_sites(dmm.guide, default="parallel", num_samples=config.tmc_num_samples, expand=False)
    return guide, kind(max_plate_nesting=1)
