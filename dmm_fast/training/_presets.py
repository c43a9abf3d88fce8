"""Named settings of training runs. A new preset is one more entry of :data:`PRESETS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmm_fast.check import describe, fail

# After arXiv 1609.09869 and its authors' code, https://github.com/clinicalml/structuredinference: Adam with
# this rate, a penalty of 0.05 times the sum of squares, of which the weight decay is the gradient, KL weights
# from 0.01 to 1 in 5000 updates, the sizes of mini-batches, latents and recurrent network, and the number of
# epochs. Sizes and networks that are not named here are those of Pyro's tutorial. The intervals of evaluation
# and the patience are choices of this package: the authors train all epochs and take the model with the best
# validation bound. So is the tanh network: theirs is an LSTM, and one of ReLUs without a penalty diverges
# on JSB in the first steps.
_KRISHNAN: dict[str, Any] = {
    "learning_rate": 8e-4,
    "beta1": 0.9,
    "lr_decay": 1.0,
    "weight_decay": 0.1,
    "guide_weight_decay": 0.0,
    "mini_batch_size": 20,
    "annealing_steps": 5000,
    "minimum_annealing_factor": 0.01,
    "z_dim": 100,
    "rnn_dim": 600,
    "rnn": "tanh",
    "inference": "st-r",
    "num_epochs": 2000,
    "eval_frequency": 10,
    "patience": 50,
}

# Choices of this package, by the validation bound of JSB: path gradients, an average of the parameters and a
# learning rate that falls to 0 reach a lower bound in less time than the settings above. What a model that
# reads past data needs against overfitting is dropout of these data, not a large penalty. The KL weight rises
# the slower, the more of the data the latents alone have to explain.
_TUNED: dict[str, Any] = {
    "learning_rate": 2e-3,
    "beta1": 0.9,
    "lr_decay": 1.0,
    "lr_schedule": "cosine",
    "gradient": "path",
    "average_decay": 0.99,
    "weight_decay": 0.3,
    "guide_weight_decay": 0.05,
    "annealing_steps": 4800,
    "minimum_annealing_factor": 0.01,
    "rnn_dim": 200,
    "rnn": "tanh",
    "num_steps": 30000,
    "eval_frequency": 10,
}
_TUNED_AUG: dict[str, Any] = {
    **_TUNED,
    "augment": "both",
    "past_dropout_rate": 0.2,
    "weight_decay": 0.1,
    "annealing_steps": 3000,
    "num_steps": 12000,
}

PRESETS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "krishnan": _KRISHNAN,
    "aug": {**_KRISHNAN, "augment": "both"},
    "aug-nade": {**_KRISHNAN, "augment": "both", "emission": "nade"},
    "tuned": _TUNED,
    "tuned-aug": _TUNED_AUG,
    "tuned-aug-nade": {
        **_TUNED_AUG,
        "emission": "nade",
        "weight_decay": 0.05,
        "annealing_steps": 720,
        "minimum_annealing_factor": 0.1,
    },
}
"""Settings by the name of a preset; the others have their defaults, which are those of Pyro's tutorial."""


_SAME = (("annealing_epochs", "annealing_steps"), ("num_epochs", "num_steps"))
"""Pairs of settings of which one replaces the other."""


class PresetName(str):
    """The name of the preset that some settings were taken from, as :class:`TrainConfig` keeps it.

    A plain string is a request for the settings of a preset, which only ``TrainConfig.from_preset`` meets.
    """

    __slots__ = ()


def preset_settings(preset: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a preset without those that settings given beside it replace.

    Args:
        preset: the name of the preset.
        given: the settings that are given; None: none.

    Raises:
        TypeError: ``preset`` is not a string.
        ValueError: there is no such preset, or two of the settings given exclude each other.
    """
    expected = f"one of {', '.join(PRESETS)}"
    if not isinstance(preset, str):
        fail("preset", expected, describe(preset), TypeError)
    if preset not in PRESETS:
        fail("preset", expected, preset)
    return not_replaced({"preset": PresetName(preset), **PRESETS[preset]}, given or {})


def not_replaced(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` without those that the settings ``given`` replace.

    A given setting replaces the one of its name, and also one that would contradict it:
    ``annealing_epochs`` and ``annealing_steps`` replace each other, and so do ``num_epochs`` and
    ``num_steps``; another ``elbo`` replaces ``gradient``; ``augment`` None replaces ``past_dropout_rate``;
    and ``eval_frequency`` 0 replaces ``patience``.

    Raises:
        ValueError: two of the settings given exclude each other.
    """
    check_given(given)
    replaced = {*given}
    for names in _SAME:
        if not replaced.isdisjoint(names):
            replaced.update(names)
    elbo = settings.get("elbo", "trace")
    if given.get("elbo", elbo) != elbo:
        replaced.add("gradient")
    if given.get("augment", True) is None:
        replaced.add("past_dropout_rate")
    if given.get("eval_frequency") == 0:
        replaced.add("patience")
    return {name: value for name, value in settings.items() if name not in replaced}


def check_given(given: Mapping[str, Any]) -> None:
    """Check that at most one of two settings that replace each other is given, be it with its default.

    Raises:
        ValueError: both are given.
    """
    for name, other in _SAME:
        if given.get(name) is not None and given.get(other) is not None:
            fail(other, f"None beside {name} {given[name]}", str(given[other]))
