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

    The fields of :data:`RUN_FIELDS` say where to write and how long to go on. All others determine
    the numbers, are kept in the checkpoint, and cannot change when a run is resumed.

    Attributes:
        data: a data file or a folder of MIDI files, as :func:`dmm_fast.data.load` reads them, or
            ``chorales``, the built-in set.
        num_sequences: of the built-in set, how many to train on (a third of it to test).
        split_seed: of the division of data that are not divided into training, validation and test.
        id_column, time_column: of a table, which sequence a row belongs to, and its time step.
        columns, control_columns, static_columns: of a table, names with commas between them.
        freq: of a table with dates, the length of a time step.
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
        inference: the guide, one of :data:`~dmm_fast._arguments.INFERENCE`.
        rnn: its recurrent network, one of :data:`~dmm_fast._arguments.NETWORKS`.
        emission: one of the names that :class:`~dmm_fast.model.DMM` explains, such as ``bernoulli`` for zeros
            and ones or ``gaussian`` for real values.
        nade_dim: hidden units of a NADE emission.
        augment: where x_{t-1} is an input: ``transition``, ``emission``, ``both``; None: nowhere.
        mask_input: the guide also reads which values are observed.
        min_scale: added to the scales of the guide's z and of a Gaussian emission.
        standardize: a new model takes the mean and the scale of its training data for its units (Gaussian
            only), a loaded one has its own; None: where the emission is Gaussian.
        recover: at a loss that is no finite number go back to the last good state, halve the learning
            rate and go on; see :class:`~dmm_fast.training._recovery.Recovery`.
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
        TypeError: a setting is of another type than its own.
        ValueError: a setting is out of its range, or does not go with another.
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
        """Check the types, the ranges, and what goes together."""
        _check_types(self)
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            # Of NaN each comparison is false.
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
        """The constructor arguments of the DMM for data with so many features, controls and covariates.

        Raises:
            TypeError: an argument is no int.
            ValueError: an argument is out of its range.
        """
        # Left out where it is the default, of which models of before there was a choice know nothing.
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
        """The arguments of :func:`dmm_fast.data.load` that say what the columns of a table are."""
        lists = {"columns": self.columns, "controls": self.control_columns, "static": self.static_columns}
        return {
            "id": self.id_column,
            "time": self.time_column,
            **{name: None if text is None else _listed(text) for name, text in lists.items()},
            "freq": self.freq,
        }

    @property
    def is_standardized(self) -> bool:
        """Whether a new model takes its units, mean and scale of each feature, from its training data."""
        return self.emission == "gaussian" if self.standardize is None else self.standardize

    def kept(self) -> dict[str, Any]:
        """The settings that determine the numbers, as JSON values."""
        # A cosine is over all epochs, so how many there are then matters from the first step.
        free = RUN_FIELDS - {"num_epochs"} if self.lr_schedule == "cosine" else RUN_FIELDS
        names = [field.name for field in dataclasses.fields(self) if field.name not in free]
        return {name: getattr(self, name) for name in names} | {"standardize": self.is_standardized}

    def saved(self) -> dict[str, Any]:
        """Settings in a checkpoint: :meth:`kept`, and what a resumed run takes over unless told otherwise."""
        return {name: getattr(self, name) for name in PACE_FIELDS} | self.kept()

    def annealing_factor(self, epoch: int, which_mini_batch: int, num_mini_batches: int) -> float:
        """The KL terms' weight at a step: linear over ``annealing_epochs``, then 1.

        As in Pyro's example: the step's one-based number over the number of annealed steps, on the
        way from ``minimum_annealing_factor`` to 1.

        Args:
            epoch: from 0.
            which_mini_batch: from 0, within the epoch.
            num_mini_batches: of an epoch.

        Raises:
            TypeError: an argument is no int.
            ValueError: an argument is out of its range.
        """
        _count("epoch", epoch, 0)
        _count("num_mini_batches", num_mini_batches, 1)
        _count("which_mini_batch", which_mini_batch, 0, num_mini_batches - 1)
        if epoch >= self.annealing_epochs:
            return 1.0
        done = (which_mini_batch + epoch * num_mini_batches + 1) / (self.annealing_epochs * num_mini_batches)
        return self.minimum_annealing_factor + (1.0 - self.minimum_annealing_factor) * done

    def scheduled_lr(self, step: int, num_mini_batches: int) -> float:
        """The rate to give ``ClippedAdam`` before ``step`` (from 0), which decays it once more.

        Raises:
            TypeError: an argument is no int.
            ValueError: an argument is out of its range.
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
        """Whether anything but ``ClippedAdam``'s own decay changes the learning rate."""
        return self.lr_schedule != "constant" or self.warmup_steps > 0


PACE_FIELDS = ("num_epochs", "eval_frequency", "checkpoint_freq")
"""Settings that say how long to go on and how often to look."""

TABLE_FIELDS = ("id_column", "time_column", "columns", "control_columns", "static_columns", "freq")
"""Settings that say what the columns of a table are."""

FILE_FIELDS = ("load_model", "load_opt", "save_model", "save_opt")
"""Settings that name a file beside the folder of a run."""

RUN_FIELDS = frozenset({*PACE_FIELDS, *FILE_FIELDS, "out", "resume", "tensorboard", "progress"})
"""Settings that do not change the numbers of a run."""

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
    "seed": (0, 2**32 - 1),  # what NumPy takes, which Pyro seeds too
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
    """Check each field against its annotation; an int may stand for a float, and a bool for nothing else."""
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
