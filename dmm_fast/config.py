"""The settings of a training run, and the two schedules they define."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from dmm_fast.check import fail

ELBOS = ("trace", "mean_field", "tmc", "tmcelbo")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run; the defaults are those of Pyro's ``examples/dmm.py``.

    The fields of :data:`RUN_FIELDS` say where to write and how long to go on. All others determine
    the numbers, are kept in the checkpoint, and cannot change when a run is resumed.

    Attributes:
        data: a data file (``.mat``, ``.pickle``, ``.npz``), or ``chorales``, the built-in set.
        num_sequences: of the built-in set, how many to train on (a third of it to test).
        seed: of torch's global generators.
        learning_rate, beta1, beta2, clip_norm, lr_decay, weight_decay: of ``ClippedAdam``.
        lr_schedule: ``constant``, or ``cosine``: from 1 to 0 over all epochs.
        warmup_steps: the learning rate climbs linearly over this many steps.
        mini_batch_size: sequences a step.
        annealing_epochs: over these the KL terms' weight climbs to 1; 0 for none.
        minimum_annealing_factor: the weight it climbs from.
        z_dim, emission_dim, transition_dim, rnn_dim, num_layers, rnn_dropout_rate, num_iafs,
            iaf_dim: sizes of the :class:`~dmm_fast.model.DMM`.
        elbo: ``trace`` (KL by sampling), ``mean_field`` (analytic KL), ``tmc``, ``tmcelbo``.
        tmc_num_samples: samples a site for the last two.
        cuda: train on the current CUDA device.
        num_epochs: how many epochs the whole run has.
        eval_frequency: validate and test every so many epochs, and after the last; 0 for never.
        out: a folder for checkpoints, metrics and TensorBoard; None writes none of them.
        resume: go on from ``out/last.safetensors``.
        checkpoint_freq: save every so many epochs, and at the end; 0 for the end only.
        tensorboard: write scalars to ``out/tensorboard``.
        progress: show a progress bar where standard error is a terminal.
        load_model, load_opt: start from this model, and this optimizer state.
        save_model, save_opt: also write the model, and the optimizer state, here.

    Raises:
        ValueError: a setting is out of its range.
    """

    data: str = "chorales"
    num_sequences: int | None = None
    seed: int = 0
    learning_rate: float = 3e-4
    beta1: float = 0.96
    beta2: float = 0.999
    clip_norm: float = 10.0
    lr_decay: float = 0.99996
    weight_decay: float = 2.0
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    mini_batch_size: int = 20
    annealing_epochs: int = 1000
    minimum_annealing_factor: float = 0.2
    z_dim: int = 100
    emission_dim: int = 100
    transition_dim: int = 200
    rnn_dim: int = 600
    num_layers: int = 1
    rnn_dropout_rate: float = 0.1
    num_iafs: int = 0
    iaf_dim: int = 100
    elbo: str = "trace"
    tmc_num_samples: int = 10
    cuda: bool = False
    num_epochs: int = 5000
    eval_frequency: int = 50
    out: Path | None = None
    resume: bool = False
    checkpoint_freq: int = 1
    tensorboard: bool = True
    progress: bool = True
    load_model: Path | None = None
    load_opt: Path | None = None
    save_model: Path | None = None
    save_opt: Path | None = None

    def __post_init__(self) -> None:
        """Check the ranges that nothing below checks."""
        for name in ("num_epochs", "mini_batch_size", "tmc_num_samples"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "annealing_epochs", "eval_frequency", "checkpoint_freq"):
            _at_least(name, getattr(self, name), 0)
        for name, choices in (("elbo", ELBOS), ("lr_schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                fail(name, f"one of {', '.join(choices)}", str(getattr(self, name)))
        if not 0 <= self.minimum_annealing_factor <= 1:
            fail("minimum_annealing_factor", "0 to 1", str(self.minimum_annealing_factor))
        if self.resume and self.out is None:
            fail("resume", "a folder, out, to resume from", "none")
        if self.resume and (self.load_model or self.load_opt):
            fail("resume", "neither load_model nor load_opt with it", "both ways to start")
        if self.load_opt and not self.load_model:
            fail("load_opt", "load_model with it", "none")

    def sizes(self, input_dim: int) -> dict[str, Any]:
        """The constructor arguments of the DMM for data with ``input_dim`` features."""
        return {
            "input_dim": input_dim,
            "z_dim": self.z_dim,
            "emission_dim": self.emission_dim,
            "transition_dim": self.transition_dim,
            "rnn_dim": self.rnn_dim,
            "num_layers": self.num_layers,
            "rnn_dropout_rate": self.rnn_dropout_rate,
            "num_iafs": self.num_iafs,
            "iaf_dim": self.iaf_dim,
            # Tensor Monte Carlo enumerates over single time steps.
            "per_step_sites": self.elbo in ("tmc", "tmcelbo"),
        }

    def kept(self) -> dict[str, Any]:
        """The settings that determine the numbers, as JSON values."""
        # A cosine is over all epochs, so how many there are then matters from the first step.
        free = RUN_FIELDS - {"num_epochs"} if self.lr_schedule == "cosine" else RUN_FIELDS
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return {name: getattr(self, name) for name in names}

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds: :meth:`kept`, and what a resumed run takes over unless told otherwise."""
        return {name: getattr(self, name) for name in PACE_FIELDS} | self.kept()

    def annealing_factor(self, epoch: int, which_mini_batch: int, num_mini_batches: int) -> float:
        """The KL terms' weight at a step: linear over ``annealing_epochs``, then 1.

        As in Pyro's example: the step's one-based number over the number of annealed steps, on the
        way from ``minimum_annealing_factor`` to 1.
        """
        if epoch >= self.annealing_epochs:
            return 1.0
        done = (which_mini_batch + epoch * num_mini_batches + 1) / (self.annealing_epochs * num_mini_batches)
        return self.minimum_annealing_factor + (1.0 - self.minimum_annealing_factor) * done

    def scheduled_lr(self, step: int, num_mini_batches: int) -> float:
        """The rate to give ``ClippedAdam`` before ``step`` (from 0), which decays it once more."""
        factor = 1.0
        if self.lr_schedule == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * step / (self.num_epochs * num_mini_batches)))
        if step < self.warmup_steps:
            factor *= (step + 1) / self.warmup_steps
        return self.learning_rate * self.lr_decay**step * factor

    @property
    def is_scheduled(self) -> bool:
        """Whether anything but ``ClippedAdam``'s own decay changes the learning rate."""
        return self.lr_schedule != "constant" or self.warmup_steps > 0


PACE_FIELDS = ("num_epochs", "eval_frequency", "checkpoint_freq")
"""Settings that say how long to go on and how often to look."""

RUN_FIELDS = frozenset(
    {
        *PACE_FIELDS,
        "out",
        "resume",
        "tensorboard",
        "progress",
        "load_model",
        "load_opt",
        "save_model",
        "save_opt",
    }
)
"""Settings that do not change the numbers of a run."""


def _at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        fail(name, f"at least {minimum}", str(value))
