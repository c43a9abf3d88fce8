"""Settings of a run, and those given on the command line in place of a preset's."""

import typing
from typing import Any

from dmm_fast.check import fail
from dmm_fast.training import TrainConfig
from dmm_fast.training._config import FILE_FIELDS

# Settings that the benchmark itself chooses.
OWN = {"preset", "data", "num_sequences", "seed", "cuda", "out", "resume", "tensorboard", "progress"}
OWN |= {*FILE_FIELDS}
# Settings that name the data and the repetition, not the way of training.
WHICH = ("data", "seed")

Setting = bool | int | float | str | None


def parsed(text: str) -> tuple[str, Setting]:
    """Name and value of ``name=value``, the value in the first type of the setting that reads it.

    Raises:
        ValueError: ``text`` has another form, the name is not a setting that can be chosen, or the value has
            another type.
    """
    name, equals, value = text.partition("=")
    hints = typing.get_type_hints(TrainConfig)
    if not equals or name not in hints or name in OWN:
        fail("--set", "name=value with the name of a setting of training", repr(text)[:80])
    kinds = typing.get_args(hints[name]) or (hints[name],)
    for kind in (type(None), bool, int, float, str):
        if kind in kinds:
            try:
                return name, _READERS[kind](value)
            except (KeyError, ValueError):
                continue
    names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    fail("--set", f"{name} of type {names}", repr(value)[:80])


def chosen(config: TrainConfig) -> dict[str, Any]:
    """The settings that determine the results of a run and differ from the defaults, by name.

    Data and seed are left out. A default is too, so that an option added later changes no run's identity.
    """
    defaults = TrainConfig().kept()
    return {
        name: value
        for name, value in sorted(config.kept().items())
        if name not in WHICH and (name not in defaults or value != defaults[name])
    }


def recorded(config: TrainConfig) -> dict[str, Any]:
    """All settings that determine the results or the length of a run, without the path of the data."""
    return {name: value for name, value in config.saved().items() if name != "data"}


def limits(config: TrainConfig) -> list[Any]:
    """The settings at which training ends by itself."""
    return [config.num_epochs, config.patience]


_READERS: dict[Any, typing.Callable[[str], Setting]] = {
    type(None): lambda text: {"none": None}[text.lower()],
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: float,
    str: str,
}
