"""The settings of a training run, and the two schedules they define."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dmm_fast._arguments import AUGMENT, INFERENCE, NETWORKS
from dmm_fast._heads import HEADS
from dmm_fast.check import describe, fail

ELBOS = ("trace", "mean_field", "tmc", "tmcelbo")
SCHEDULES = ("constant", "cosine")
EMISSIONS = tuple(HEADS)


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
        lr_schedule: ``constant``, or ``cosine``: a factor from 1 to 0 over all epochs.
        warmup_steps: number of steps over which the learning rate rises linearly.
        mini_batch_size: number of sequences per step.
        annealing_epochs: number of epochs over which the weight of the KL terms rises to 1; 0: no
            annealing.
        minimum_annealing_factor: the weight at which annealing begins.
        z_dim, emission_dim, transition_dim, rnn_dim, num_layers: sizes of the :class:`~dmm_fast.DMM`.
        rnn_dropout_rate, num_iafs, iaf_dim: arguments of the same.
        elbo: ``trace`` (sampled KL), ``mean_field`` (analytic KL), ``tmc`` or ``tmcelbo``.
        tmc_num_samples: number of samples per site for ``tmc`` and ``tmcelbo``.
        inference: the guide, one of those that :class:`~dmm_fast.DMM` explains.
        rnn: the guide's recurrent network, ``relu``, ``tanh``, ``lstm`` or ``gru``.
        emission: one of the names that :class:`~dmm_fast.model.DMM` explains, such as ``bernoulli`` for zeros
            and ones or ``gaussian`` for real values.
        nade_dim: number of hidden units of a NADE emission.
        augment: the networks that also read x_{t-1}: ``transition``, ``emission`` or ``both``; None: neither.
        mask_input: give the guide the mask of observed values as a further input.
        min_scale: added to the scales of the guide's z and of a Gaussian emission.
        standardize: use the mean and the scale of the training data as the units of a new model (Gaussian
            emissions only; a loaded model has its own units); None: do so if the emission is Gaussian.
        recover: when a loss is not finite, go back to the last good state, halve the learning rate and
            continue; see :class:`~dmm_fast.training._recovery.Recovery`.
        cuda: train on the current CUDA device.
        num_epochs: number of epochs of the whole run.
        eval_frequency: number of epochs between evaluations on validation and test data; the last epoch is
            always evaluated; 0: never evaluate.
        out: a folder for checkpoints, metrics and TensorBoard; None: write none of them.
        resume: continue from ``out/last.safetensors``.
        checkpoint_freq: number of epochs between checkpoints; one is always written at the end; 0: only
            at the end.
        tensorboard: write scalars to ``out/tensorboard``.
        progress: show a progress bar if standard error is a terminal.
        load_model, load_opt: files of the model and the optimizer state to start from.
        save_model, save_opt: further files to write the model and the optimizer state to.

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
    inference: str = "st-r"
    rnn: str = "relu"
    emission: str = "bernoulli"
    nade_dim: int = 100
    augment: str | None = None
    mask_input: bool = False
    min_scale: float = 0.0
    standardize: bool | None = None
    recover: bool = False
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
        """Check types, ranges, and combinations of settings."""
        _check_types(self)
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            # Comparisons with NaN are false, so this rejects NaN too.
            if value is not None and not lowest <= value <= highest:
                fail(name, _range(lowest, highest), str(value))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and (value is not None or name != "augment"):
                fail(name, f"one of {', '.join(choices)}", str(value))
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                fail(name, "a number below 1", "1")
        for name in ("clip_norm", "lr_decay"):
            if getattr(self, name) == 0:
                fail(name, "a number above 0", "0")
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

    def sizes(self, input_dim: int, control_dim: int = 0, static_dim: int = 0) -> dict[str, Any]:
        """The constructor arguments of a DMM, for data with these numbers of features, controls, covariates.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is out of range.
        """
        # A default is left out, since checkpoints older than the argument do not have it.
        names = ("emission", "nade_dim", "augment", "mask_input", "inference", "rnn", "min_scale")
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in names}
        inputs = {"control_dim": control_dim, "static_dim": static_dim}
        for name, width in {"input_dim": input_dim, **inputs}.items():
            _count(name, width, int(name == "input_dim"))
        return {
            "input_dim": input_dim,
            **{name: getattr(self, name) for name in (*_WIDTHS, "rnn_dropout_rate", "num_iafs", "iaf_dim")},
            # Tensor Monte Carlo enumerates over single time steps.
            "per_step_sites": self.elbo in ("tmc", "tmcelbo"),
            **{name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]},
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
        # The cosine schedule spans all epochs, so with it the number of epochs matters from the first step.
        free = RUN_FIELDS - {"num_epochs"} if self.lr_schedule == "cosine" else RUN_FIELDS
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return {name: getattr(self, name) for name in names} | {"standardize": self.is_standardized}

    def saved(self) -> dict[str, Any]:
        """Settings in a checkpoint: :meth:`kept`, and those that a resumed run may override."""
        return {name: getattr(self, name) for name in PACE_FIELDS} | self.kept()

    def without_outputs(self) -> TrainConfig:
        """The settings of a process that takes part in a run and writes nothing."""
        return dataclasses.replace(
            self, out=None, resume=False, save_model=None, save_opt=None, tensorboard=False, progress=False
        )

    def annealing_factor(self, epoch: int, which_mini_batch: int, num_mini_batches: int) -> float:
        """The weight of the KL terms at a step: linear over ``annealing_epochs``, then 1.

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
        _count("epoch", epoch, 0)
        _count("num_mini_batches", num_mini_batches, 1)
        _count("which_mini_batch", which_mini_batch, 0, num_mini_batches - 1)
        if epoch >= self.annealing_epochs:
            return 1.0
        done = (which_mini_batch + epoch * num_mini_batches + 1) / (self.annealing_epochs * num_mini_batches)
        return self.minimum_annealing_factor + (1.0 - self.minimum_annealing_factor) * done

    def scheduled_lr(self, step: int, num_mini_batches: int) -> float:
        """The learning rate to set before ``step``, counted from 0; ``ClippedAdam`` decays it once more.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is out of range.
        """
        _count("step", step, 0)
        _count("num_mini_batches", num_mini_batches, 1)
        factor = 1.0
        if self.lr_schedule == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * step / (self.num_epochs * num_mini_batches)))
        if step < self.warmup_steps:
            factor *= (step + 1) / self.warmup_steps
        return self.learning_rate * self.lr_decay**step * factor

    @property
    def is_scheduled(self) -> bool:
        """True if the learning rate changes by more than ``ClippedAdam``'s own decay."""
        return self.lr_schedule != "constant" or self.warmup_steps > 0


PACE_FIELDS = ("num_epochs", "eval_frequency", "checkpoint_freq")
"""Settings of the length of a run and of the intervals between evaluations and checkpoints."""

TABLE_FIELDS = ("id_column", "time_column", "columns", "control_columns", "static_columns", "freq")
"""Settings that describe the columns of a table."""

FILE_FIELDS = ("load_model", "load_opt", "save_model", "save_opt")
"""Settings that name files outside the folder of a run."""

RUN_FIELDS = frozenset({*PACE_FIELDS, *FILE_FIELDS, "out", "resume", "tensorboard", "progress"})
"""Settings that do not change the results of a run."""

_INF = math.inf
_LARGEST = sys.float_info.max

_WIDTHS = ("z_dim", "emission_dim", "transition_dim", "rnn_dim", "num_layers")

_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_epochs", "mini_batch_size", "tmc_num_samples", "num_sequences"), (1, _INF)),
    **dict.fromkeys(("warmup_steps", "annealing_epochs", "eval_frequency", "checkpoint_freq"), (0, _INF)),
    **dict.fromkeys(_WIDTHS, (1, _INF)),
    **dict.fromkeys(("learning_rate", "lr_decay", "weight_decay", "min_scale"), (0, _LARGEST)),
    **dict.fromkeys(("beta1", "beta2", "minimum_annealing_factor", "rnn_dropout_rate"), (0, 1)),
    "clip_norm": (0, _INF),
    "num_iafs": (0, _INF),
    **dict.fromkeys(("iaf_dim", "nade_dim"), (1, _INF)),
    "split_seed": (0, sys.maxsize),
    "seed": (0, 2**32 - 1),  # the range of NumPy's seeds, since Pyro seeds NumPy too
}

_CHOICES = {
    "elbo": ELBOS,
    "lr_schedule": SCHEDULES,
    "emission": EMISSIONS,
    "augment": AUGMENT,
    "inference": INFERENCE,
    "rnn": NETWORKS,
}


def _check_types(config: TrainConfig) -> None:
    """Check each field against its annotation; an int is accepted as a float, a bool only as a bool."""
    for name, hint in get_type_hints(TrainConfig).items():
        kinds = get_args(hint) or (hint,)
        value = getattr(config, name)
        admitted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, admitted) or (isinstance(value, bool) and bool not in kinds):
            fail(name, _names(kinds), describe(value), TypeError)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)


def _range(lowest: float, highest: float) -> str:
    if highest == _INF:
        return f"at least {lowest}"
    return f"a finite number from {lowest}" if highest == _LARGEST else f"{lowest} to {highest}"


def _count(name: str, value: object, lowest: int, highest: float = _INF) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        fail(name, "int", describe(value), TypeError)
    if not lowest <= value <= highest:
        fail(name, _range(lowest, highest), str(value))
