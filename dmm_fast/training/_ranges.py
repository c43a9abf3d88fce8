"""The types, the ranges and the choices of the settings of a training run."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, get_args, get_type_hints

from dmm_fast._arguments import AUGMENT, GRADIENTS, INFERENCE, NETWORKS
from dmm_fast._heads import HEADS
from dmm_fast.check import describe, fail

if TYPE_CHECKING:
    from dmm_fast.training._config import TrainConfig

SIZES = ("z_dim", "emission_dim", "transition_dim", "rnn_dim", "num_layers")
"""Settings that are sizes of a model."""

ENUMERATED = ("tmc", "tmcelbo")
"""The objectives that enumerate the samples of each time step."""

GRADIENTS_OF = {"trace": ("total", "path"), "importance": GRADIENTS}
"""The estimators of the gradient of each objective; those of the others: ``total``."""

_INF = math.inf
_LARGEST = sys.float_info.max


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("num_epochs", "num_steps", "mini_batch_size", "segment_steps", "num_sequences"), (1, _INF)
    ),
    **dict.fromkeys(("tmc_num_samples", "num_particles", "evaluation_particles"), (1, _INF)),
    **dict.fromkeys(("warmup_steps", "annealing_epochs", "annealing_steps"), (0, _INF)),
    **dict.fromkeys(("eval_frequency", "checkpoint_freq", "patience"), (0, _INF)),
    **dict.fromkeys(SIZES, (1, _INF)),
    **dict.fromkeys(("learning_rate", "lr_decay", "min_scale"), (0, _LARGEST)),
    **dict.fromkeys(("weight_decay", "guide_weight_decay"), (0, _LARGEST)),
    **dict.fromkeys(("beta1", "beta2", "average_decay"), (0, 1)),
    **dict.fromkeys(("minimum_annealing_factor", "rnn_dropout_rate", "past_dropout_rate"), (0, 1)),
    "clip_norm": (0, _INF),
    "num_iafs": (0, _INF),
    **dict.fromkeys(("iaf_dim", "nade_dim"), (1, _INF)),
    "split_seed": (0, sys.maxsize),
    "seed": (0, 2**32 - 1),  # the range of NumPy's seeds, since Pyro seeds NumPy too
}

_CHOICES = {
    "elbo": ("trace", "mean_field", "importance", *ENUMERATED),
    "gradient": GRADIENTS,
    "lr_schedule": ("constant", "cosine"),
    "emission": tuple(HEADS),
    "augment": AUGMENT,
    "inference": INFERENCE,
    "rnn": NETWORKS,
}


def check_types(config: TrainConfig) -> None:
    """Check each field against its annotation; an int is accepted as a float, a bool only as a bool.

    Raises:
        TypeError: a setting has the wrong type.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds = get_args(hint) or (hint,)
        value = getattr(config, name)
        admitted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, admitted) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            fail(name, expected, describe(value), TypeError)


def check_ranges(config: TrainConfig) -> None:
    """Check the settings one by one.

    Raises:
        ValueError: a number is out of range, or a string is none of its choices.
    """
    for name, (lowest, highest) in _RANGES.items():
        value = getattr(config, name)
        # Comparisons with NaN are false, so this rejects NaN too.
        if value is not None and not lowest <= value <= highest:
            fail(name, _range(lowest, highest), str(value))
    for name, choices in _CHOICES.items():
        value = getattr(config, name)
        if value not in choices and (value is not None or name != "augment"):
            fail(name, f"one of {', '.join(choices)}", str(value))
    for name in ("beta1", "beta2", "average_decay"):
        if getattr(config, name) == 1:
            fail(name, "a number below 1", "1")
    for name in ("clip_norm", "lr_decay"):
        if getattr(config, name) == 0:
            fail(name, "a number above 0", "0")


def check_count(name: str, value: object, lowest: int, highest: float = _INF) -> None:
    """Check that ``value`` is an int from ``lowest`` to ``highest``.

    Raises:
        TypeError: it is not an int.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        fail(name, "int", describe(value), TypeError)
    if not lowest <= value <= highest:
        fail(name, _range(lowest, highest), str(value))


def _range(lowest: float, highest: float) -> str:
    if highest == _INF:
        return f"at least {lowest}"
    return f"a finite number from {lowest}" if highest == _LARGEST else f"{lowest} to {highest}"
