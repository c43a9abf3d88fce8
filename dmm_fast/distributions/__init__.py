"""Sequence-level Pyro distributions of a Deep Markov Model.

Each is one distribution over a whole sequence: batch shape ``[..., B]`` and event shape ``[T, Z]`` or
``[T, D]``, time leftmost as in :class:`pyro.distributions.GaussianHMM`. Sequences may have different
``lengths``: past its end a draw is zero, and the log-density, which is in nats, has no term.

A network may be given as weights: an op of :mod:`dmm_fast.ops` then computes it together with the density. Or
it may be a module or a function, which is called once for all time steps, or once per step if each step reads
the draw of the one before.
"""

from dmm_fast.distributions._categorical import CategoricalEmission
from dmm_fast.distributions._counts import NegativeBinomialEmission, PoissonEmission
from dmm_fast.distributions._emission import BernoulliEmission, GaussianEmission, Units
from dmm_fast.distributions._flowed_normal import FlowedNormal
from dmm_fast.distributions._module_emission import ModuleEmission
from dmm_fast.distributions._nade import NadeEmission
from dmm_fast.distributions._posterior import MarkovPosterior, MeanFieldPosterior
from dmm_fast.distributions._prior import MarkovPrior
from dmm_fast.distributions._sequence import SequenceDistribution

__all__ = [
    "BernoulliEmission",
    "CategoricalEmission",
    "FlowedNormal",
    "GaussianEmission",
    "MarkovPosterior",
    "MarkovPrior",
    "MeanFieldPosterior",
    "ModuleEmission",
    "NadeEmission",
    "NegativeBinomialEmission",
    "PoissonEmission",
    "SequenceDistribution",
    "Units",
]
