"""The settings of a training run, and the two schedules they define."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from dmm_fast.check import fail
from dmm_fast.training._presets import PresetName, preset_settings
from dmm_fast.training._ranges import (
    ENUMERATED,
    GRADIENTS_OF,
    SIZES,
    check_count,
    check_ranges,
    check_types,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run; the defaults are those of Pyro's ``examples/dmm.py``.

    The fields in ``RUN_FIELDS`` set where a run writes and how long it lasts. All others determine its
    results; they are stored in the checkpoint and cannot change when a run is resumed.

    Attributes:
        data: a data file or a folder of MIDI files, as :func:`dmm_fast.data.load` reads them, or
            ``chorales``, the built-in data set.
        num_sequences: number of training sequences of the built-in data set; validation and test have a
            third as many each.
        split_seed: seed of the division into training, validation and test, for data that come undivided.
        id_column, time_column: for a table, the columns that name a row's sequence and its time step.
        columns, control_columns, static_columns: for a table, column names separated by commas.
        freq: for a table with dates, the length of a time step.
        seed: seed of torch's global generators.
        learning_rate, beta1, beta2, clip_norm, lr_decay, weight_decay: arguments of ``ClippedAdam``.
        guide_weight_decay: weight decay of the guide's parameters; None: as ``weight_decay``, which is that
            of the model's parameters (emitter, transition, ``z_0``).
        lr_schedule: ``constant``, or ``cosine``: a factor from 1 to 0 over all epochs.
        warmup_steps: number of steps over which the learning rate rises linearly.
        average_decay: decay per step of a moving average of the parameters, such as 0.999, but at most
            ``(1 + n) / (10 + n)`` after step ``n``. The averages are evaluated and saved as the model. 0: no
            averaging.
        mini_batch_size: number of sequences per step.
        segment_steps: train on segments of at most this many time steps, each a sequence of its own, as
            :meth:`~dmm_fast.data.SequenceSet.segments` cuts them. Validation and test data are not cut.
            None: train on whole sequences.
        annealing_epochs: number of epochs over which the weight of the KL terms rises to 1; 0: no
            annealing.
        annealing_steps: the same as a number of steps. ``annealing_epochs`` must then keep its default value,
            and has no effect. None: count epochs.
        minimum_annealing_factor: the weight at which annealing begins.
        z_dim, emission_dim, transition_dim, rnn_dim, num_layers: sizes of the :class:`~dmm_fast.DMM`.
        rnn_dropout_rate, num_iafs, iaf_dim: arguments of the same.
        elbo: ``trace`` (sampled KL), ``mean_field`` (analytic KL), ``importance`` (weighted draws of each
            sequence, a tighter bound), ``tmc`` or ``tmcelbo``. Evaluations measure the ELBO with each of
            them, so that runs with different objectives can be compared.
        num_particles: number of draws of each sequence for ``trace``, ``mean_field`` and ``importance``.
        gradient: the estimator of the gradient: ``total``; ``path`` with ``trace`` or ``importance``;
            ``dreg`` with ``importance``. See :class:`~dmm_fast.infer.ImportanceELBO`.
        tmc_num_samples: number of samples per site for ``tmc`` and ``tmcelbo``.
        inference: the guide, one of those that :class:`~dmm_fast.DMM` explains.
        rnn: the guide's recurrent network, ``relu``, ``tanh``, ``lstm`` or ``gru``.
        emission: one of the names that :class:`~dmm_fast.model.DMM` explains, such as ``bernoulli`` for zeros
            and ones or ``gaussian`` for real values.
        nade_dim: number of hidden units of a NADE emission.
        augment: the networks that also read x_{t-1}: ``transition``, ``emission`` or ``both``; None: neither.
        past_dropout_rate: dropout of the elements of x_{t-1} that these networks read, while training.
        mask_input: give the guide the mask of observed values as a further input.
        min_scale: added to the scales of the guide's z and of a Gaussian emission.
        standardize: use the mean and the scale of the training data as the units of a new model (Gaussian
            emissions only; a loaded model has its own units); None: do so if the emission is Gaussian.
        recover: when a loss is not finite, go back to the last good state, halve the learning rate and
            continue; see :class:`~dmm_fast.training._recovery.Recovery`.
        cuda: train on the current CUDA device.
        preset: the name of the preset that :meth:`from_preset` took these settings from, for information; it
            is set there and not by the constructor, which has no way to tell given settings from defaults.
        num_epochs: number of epochs of the whole run.
        num_steps: the same as a number of steps, rounded up to whole epochs; see :meth:`in_epochs`.
            ``num_epochs`` must then keep its default value, and has no effect. None: count epochs.
        eval_frequency: number of epochs between evaluations on validation and test data; the last epoch is
            always evaluated; 0: never evaluate.
        evaluation_particles: number of draws of z for each sequence in these evaluations.
        patience: stop after this many evaluations without a better bound on the validation data, which is
            the ELBO whatever ``elbo`` is; 0: never. The model of the best bound is kept in ``out`` only.
        out: a folder for checkpoints, metrics and TensorBoard; None: write none of them.
        resume: continue from ``out/last.safetensors``.
        checkpoint_freq: number of epochs between checkpoints; one is always written at the end; 0: only
            at the end.
        tensorboard: write scalars to ``out/tensorboard``.
        progress: show a progress bar if standard error is a terminal.
        load_model, load_opt: files of the model and the optimizer state to start from.
        save_model, save_opt: further files to write the last model and the state of the optimizer to. With
            ``average_decay`` the model has the averages, but the optimizer's moments are those of the
            parameters themselves; to continue such a run, ``resume`` it.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range, or conflicts with another.
    """

    data: str = "chorales"
    num_sequences: int | None = None
    split_seed: int = 0
    id_column: str | None = None
    time_column: str | None = None
    columns: str | None = None
    control_columns: str | None = None
    static_columns: str | None = None
    freq: str | None = None
    seed: int = 0
    learning_rate: float = 3e-4
    beta1: float = 0.96
    beta2: float = 0.999
    clip_norm: float = 10.0
    lr_decay: float = 0.99996
    weight_decay: float = 2.0
    guide_weight_decay: float | None = None
    lr_schedule: str = "constant"
    warmup_steps: int = 0
    average_decay: float = 0.0
    mini_batch_size: int = 20
    segment_steps: int | None = None
    annealing_epochs: int = 1000
    annealing_steps: int | None = None
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
    num_particles: int = 1
    gradient: str = "total"
    tmc_num_samples: int = 10
    inference: str = "st-r"
    rnn: str = "relu"
    emission: str = "bernoulli"
    nade_dim: int = 100
    augment: str | None = None
    past_dropout_rate: float = 0.0
    mask_input: bool = False
    min_scale: float = 0.0
    standardize: bool | None = None
    recover: bool = False
    cuda: bool = False
    preset: str | None = None
    num_epochs: int = 5000
    num_steps: int | None = None
    eval_frequency: int = 50
    evaluation_particles: int = 1
    patience: int = 0
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
        """Check types, ranges, and combinations of settings."""
        check_types(self)
        check_ranges(self)
        if self.preset is not None and not isinstance(self.preset, PresetName):
            fail("preset", f"None; TrainConfig.from_preset({self.preset!r}) takes the settings", self.preset)
        if self.annealing_steps is not None and self.annealing_epochs != TrainConfig.annealing_epochs:
            beside = f"None beside annealing_epochs {self.annealing_epochs}"
            fail("annealing_steps", beside, str(self.annealing_steps))
        if self.num_steps is not None and self.num_epochs != TrainConfig.num_epochs:
            fail("num_steps", f"None beside num_epochs {self.num_epochs}", str(self.num_steps))
        if self.past_dropout_rate > 0 and self.augment is None:
            fail("past_dropout_rate", "0 without augment", str(self.past_dropout_rate))
        if self.patience > 0 and self.eval_frequency == 0:
            fail("patience", "0 with eval_frequency 0, which means no evaluation", str(self.patience))
        known = GRADIENTS_OF.get(self.elbo, ("total",))
        if self.gradient not in known:
            fail("gradient", f"{' or '.join(known)} with elbo {self.elbo}", self.gradient)
        if self.num_particles > 1 and self.elbo in ENUMERATED:
            fail("num_particles", f"1 with elbo {self.elbo}", str(self.num_particles))
        if self.standardize and self.emission != "gaussian":
            fail("standardize", "emission gaussian with it", self.emission)
        if self.standardize is not None and self.load_model is not None:
            fail("standardize", "None with load_model, which has units or has none", str(self.standardize))
        if self.resume and self.out is None:
            fail("resume", "a folder, out, to resume from", "none")
        if self.resume and (self.load_model or self.load_opt):
            fail("resume", "neither load_model nor load_opt with it", "both ways to start")
        if self.load_opt and not self.load_model:
            fail("load_opt", "load_model with it", "none")

    @classmethod
    def from_preset(cls, preset: str, **settings: Any) -> TrainConfig:
        """The settings of a preset, except for those that are given.

        Args:
            preset: ``tutorial`` (the defaults), or after arXiv 1609.09869 ``krishnan``, ``aug`` or
                ``aug-nade``; ``dmm-fast train --help`` lists their settings.
            settings: fields of this class. A setting also replaces what would contradict it in the preset:
                ``annealing_epochs`` replaces ``annealing_steps``, and the other way round; so do
                ``num_epochs`` and ``num_steps``; another ``elbo`` replaces ``gradient``, which is then
                ``total`` unless it is given; ``augment`` None replaces ``past_dropout_rate``; and
                ``eval_frequency`` 0 replaces ``patience``.

        Raises:
            TypeError: ``preset`` is not a string, or a setting is unknown or has the wrong type.
            ValueError: there is no such preset, or a setting is out of range, or conflicts with another.
        """
        return cls(**{**preset_settings(preset, settings), **settings})

    def sizes(self, input_dim: int, control_dim: int = 0, static_dim: int = 0) -> dict[str, Any]:
        """The constructor arguments of a DMM, for data with these numbers of features, controls, covariates.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is out of range.
        """
        # A default is left out, since checkpoints older than the argument do not have it.
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        changed = [name for name in _OPTIONS if getattr(self, name) != fields[name]]
        inputs = {"control_dim": control_dim, "static_dim": static_dim}
        for name, width in {"input_dim": input_dim, **inputs}.items():
            check_count(name, width, int(name == "input_dim"))
        return {
            "input_dim": input_dim,
            **{name: getattr(self, name) for name in (*SIZES, "rnn_dropout_rate", "num_iafs", "iaf_dim")},
            # Tensor Monte Carlo enumerates over single time steps.
            "per_step_sites": self.elbo in ENUMERATED,
            **{name: getattr(self, name) for name in changed},
            **{name: width for name, width in inputs.items() if width > 0},
        }

    @property
    def table(self) -> dict[str, Any]:
        """The arguments of :func:`dmm_fast.data.load` that describe the columns of a table."""
        lists = {"columns": self.columns, "controls": self.control_columns, "static": self.static_columns}
        return {
            "id": self.id_column,
            "time": self.time_column,
            **{name: None if text is None else _listed(text) for name, text in lists.items()},
            "freq": self.freq,
        }

    @property
    def is_standardized(self) -> bool:
        """True if a new model takes its units, the mean and scale of each feature, from its training data."""
        return self.emission == "gaussian" if self.standardize is None else self.standardize

    def kept(self) -> dict[str, Any]:
        """The settings that determine the results of a run, as JSON values."""
        # The cosine schedule spans the whole run, so with it the run's length matters from the first step.
        length = {"num_epochs" if self.num_steps is None else "num_steps"}
        free = RUN_FIELDS - length if self.lr_schedule == "cosine" else RUN_FIELDS
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return {name: getattr(self, name) for name in names} | {"standardize": self.is_standardized}

    def saved(self) -> dict[str, Any]:
        """Settings in a checkpoint: :meth:`kept`, and those that a resumed run may override."""
        preset = None if self.preset is None else str(self.preset)
        return {"preset": preset, **{name: getattr(self, name) for name in PACE_FIELDS}, **self.kept()}

    def in_epochs(self, num_mini_batches: int) -> TrainConfig:
        """The same settings with the length of the run in epochs of ``num_mini_batches`` steps.

        Raises:
            TypeError: ``num_mini_batches`` is not an int.
            ValueError: ``num_mini_batches`` is not positive.
        """
        check_count("num_mini_batches", num_mini_batches, 1)
        if self.num_steps is None:
            return self
        return dataclasses.replace(self, num_epochs=self._num_epochs(num_mini_batches), num_steps=None)

    def _num_epochs(self, num_mini_batches: int) -> int:
        return self.num_epochs if self.num_steps is None else -(-self.num_steps // num_mini_batches)

    def without_outputs(self) -> TrainConfig:
        """The settings of a process that takes part in a run and writes nothing."""
        return dataclasses.replace(
            self, out=None, resume=False, save_model=None, save_opt=None, tensorboard=False, progress=False
        )

    def annealing_factor(self, epoch: int, which_mini_batch: int, num_mini_batches: int) -> float:
        """The weight of the KL terms at a step: linear over ``annealing_epochs`` or steps, then 1.

        As in Pyro's example, the weight goes from ``minimum_annealing_factor`` to 1 by the step's one-based
        index divided by the number of annealed steps.

        Args:
            epoch: the epoch, counted from 0.
            which_mini_batch: the mini-batch within the epoch, counted from 0.
            num_mini_batches: number of mini-batches per epoch.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is out of range.
        """
        check_count("epoch", epoch, 0)
        check_count("num_mini_batches", num_mini_batches, 1)
        check_count("which_mini_batch", which_mini_batch, 0, num_mini_batches - 1)
        step, annealed = which_mini_batch + epoch * num_mini_batches, self.annealed_steps(num_mini_batches)
        if step >= annealed:
            return 1.0
        done = (step + 1) / annealed
        return self.minimum_annealing_factor + (1.0 - self.minimum_annealing_factor) * done

    def annealed_steps(self, num_mini_batches: int) -> int:
        """The number of steps in which the weight of the KL terms rises to 1.

        Args:
            num_mini_batches: number of mini-batches per epoch.

        Raises:
            TypeError: ``num_mini_batches`` is not an int.
            ValueError: ``num_mini_batches`` is not positive.
        """
        check_count("num_mini_batches", num_mini_batches, 1)
        of_epochs = self.annealing_epochs * num_mini_batches
        return of_epochs if self.annealing_steps is None else self.annealing_steps

    def scheduled_lr(self, step: int, num_mini_batches: int) -> float:
        """The learning rate to set before ``step``, counted from 0; ``ClippedAdam`` decays it once more.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is out of range.
        """
        check_count("step", step, 0)
        check_count("num_mini_batches", num_mini_batches, 1)
        factor = 1.0
        if self.lr_schedule == "cosine":
            num_steps = self._num_epochs(num_mini_batches) * num_mini_batches
            factor = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        if step < self.warmup_steps:
            factor *= (step + 1) / self.warmup_steps
        return self.learning_rate * self.lr_decay**step * factor

    @property
    def is_scheduled(self) -> bool:
        """True if the learning rate changes by more than ``ClippedAdam``'s own decay."""
        return self.lr_schedule != "constant" or self.warmup_steps > 0


PACE_FIELDS = ("num_epochs", "num_steps", "eval_frequency", "checkpoint_freq", "patience")
"""Settings of the length of a run and of the intervals between evaluations and checkpoints."""

TABLE_FIELDS = ("id_column", "time_column", "columns", "control_columns", "static_columns", "freq")
"""Settings that describe the columns of a table."""

FILE_FIELDS = ("load_model", "load_opt", "save_model", "save_opt")
"""Settings that name files outside the folder of a run."""

RUN_FIELDS = frozenset({*PACE_FIELDS, *FILE_FIELDS, "preset", "out", "resume", "tensorboard", "progress"})
"""Settings that do not change the results of a run."""

_OPTIONS = (
    "emission",
    "nade_dim",
    "augment",
    "past_dropout_rate",
    "mask_input",
    "inference",
    "rnn",
    "min_scale",
)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
