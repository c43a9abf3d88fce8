"""The emissions of a DMM by name: network, distribution and kind of data."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from dmm_fast import check
from dmm_fast.distributions import (
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    NadeEmission,
    NegativeBinomialEmission,
    PoissonEmission,
    SequenceDistribution,
)
from dmm_fast.nn import (
    CategoricalEmitter,
    Emitter,
    GaussianEmitter,
    NadeEmitter,
    NegativeBinomialEmitter,
    PoissonEmitter,
)


class Head(NamedTuple):
    """An emission: the network of its parameters, its distribution and the kind of its values."""

    emitter: type[Any]
    distribution: Callable[..., SequenceDistribution]
    values: str


HEADS = {
    "bernoulli": Head(Emitter, BernoulliEmission, "binary"),
    "gaussian": Head(GaussianEmitter, GaussianEmission, "real"),
    "poisson": Head(PoissonEmitter, PoissonEmission, "count"),
    "negative_binomial": Head(NegativeBinomialEmitter, NegativeBinomialEmission, "count"),
    "categorical": Head(CategoricalEmitter, CategoricalEmission, "one_hot"),
    "nade": Head(NadeEmitter, NadeEmission, "binary"),
}
"""The emissions by name; the kinds of values are keys of :data:`dmm_fast._values.KINDS`."""

_NAMES = {head.emitter: name for name, head in HEADS.items()}


def checked_emission(emission: Any) -> str:
    """The name of an emission, ``"module"`` for a user's module.

    Raises:
        ValueError: the name is unknown.
        TypeError: a module has no ``log_prob(x, z)`` or no ``sample(z)``.
    """
    if isinstance(emission, nn.Module):
        for name, given in (("log_prob", ("x", "z")), ("sample", ("z",))):
            method = getattr(emission, name, None)
            if method is None:
                expected = "a module with log_prob(x, z) and sample(z)"
                check.fail("emission", expected, f"a {type(emission).__name__} without {name}", TypeError)
            check.takes(f"emission.{name}", method, given, {}, f"a function of {' and '.join(given)}")
        return "module"
    if not isinstance(emission, str) or emission not in HEADS:
        check.fail("emission", f"one of {', '.join(HEADS)}, or a module", check.describe(emission))
    return emission


def make_emitter(
    emission: str | nn.Module, input_dim: int, width: int, hidden: int, nade_dim: int
) -> nn.Module:
    """The network of an emission, with ``width`` inputs, ``hidden`` units and ``input_dim`` features."""
    if isinstance(emission, nn.Module):
        return emission
    sizes = (input_dim, width, hidden)
    if emission == "nade":
        return NadeEmitter(*sizes, nade_dim)
    emitter: nn.Module = HEADS[emission].emitter(*sizes)
    return emitter


def name_of(emitter: nn.Module, asked_for: str) -> str:
    """The name of the emission of a network of this package; for other networks ``asked_for``."""
    return next((_NAMES[kind] for kind in type(emitter).__mro__ if kind in _NAMES), asked_for)
