"""Emitters: the networks of p(x_t | z_t), public as :mod:`dmm_fast.nn`."""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from dmm_fast import check, ops
from dmm_fast._network import Network
from dmm_fast.ops import EmitterWeights, GaussianEmitterWeights, NadeEmitterWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import nade_emitter

_Weights = TypeVar("_Weights", EmitterWeights, GaussianEmitterWeights)


class _Emitter(Network[_Weights]):
    """Two hidden ReLU layers followed by one or two linear heads."""

    relu: nn.Module
    softplus: nn.Module

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim)
        sizes = {"D": input_dim, "Z": z_dim, "E": emission_dim}
        for name, letters in self._LAYERS.items():
            setattr(self, name, nn.Linear(sizes[letters[1]], sizes[letters[0]]))
        for name, kind in self._ACTIVATIONS.items():
            setattr(self, name, kind())

    def _heads(self, z_t: Tensor) -> tuple[Tensor, ...]:
        """The heads' outputs, each ``[..., D]``, before their activations."""
        if self.what_changed() is None:
            weights = self.weights
            if isinstance(weights, EmitterWeights):
                return (ops.emitter(z_t, weights),)
            return ops.gaussian_emitter(z_t, weights)
        to_hidden, to_next, *heads = (getattr(self, name) for name in self._LAYERS)
        hidden = self.relu(to_next(self.relu(to_hidden(z_t))))
        return tuple(head(hidden) for head in heads)


_ONE_HEAD = {"lin_z_to_hidden": "EZ", "lin_hidden_to_hidden": "EE", "lin_hidden_to_input": "DE"}


class Emitter(_Emitter[EmitterWeights]):
    """Bernoulli emission p(x_t | z_t): ``probs = sigmoid(W_3 relu(W_2 relu(W_1 z)))``.

    Source: ``Emitter`` in Pyro's ``examples/dmm.py``.
    """

    _WEIGHTS: ClassVar = EmitterWeights
    _LAYERS: ClassVar = _ONE_HEAD
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU}

    def forward(self, z_t: Tensor) -> Tensor:
        """``probs [..., D]`` for ``z_t [..., Z]``."""
        (logits,) = self._heads(z_t)
        return torch.sigmoid(logits)


class GaussianEmitter(_Emitter[GaussianEmitterWeights]):
    """Gaussian emission p(x_t | z_t): the emitter's hidden layers followed by a loc and a scale head."""

    _WEIGHTS: ClassVar = GaussianEmitterWeights
    _LAYERS: ClassVar = {
        "lin_z_to_hidden": "EZ",
        "lin_hidden_to_hidden": "EE",
        "lin_hidden_to_loc": "DE",
        "lin_hidden_to_scale": "DE",
    }
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def forward(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., D]``, for ``z_t [..., Z]``."""
        loc, pre_scale = self._heads(z_t)
        return loc, self.softplus(pre_scale)


class PoissonEmitter(_Emitter[EmitterWeights]):
    """Poisson emission p(x_t | z_t) of counts: the softplus of the emitter's output is the rate."""

    _WEIGHTS: ClassVar = EmitterWeights
    _LAYERS: ClassVar = _ONE_HEAD
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def forward(self, z_t: Tensor) -> Tensor:
        """``rate [..., D]`` for ``z_t [..., Z]``."""
        (pre_rate,) = self._heads(z_t)
        rate: Tensor = self.softplus(pre_rate)
        return rate


class NegativeBinomialEmitter(_Emitter[GaussianEmitterWeights]):
    """Negative binomial emission p(x_t | z_t) of counts, with a larger variance than a Poisson's.

    The softplus of two heads on the emitter's hidden layers gives the mean ``m`` and the total count ``r``;
    the variance is ``m + m^2 / r``.
    """

    _WEIGHTS: ClassVar = GaussianEmitterWeights
    _LAYERS: ClassVar = {
        "lin_z_to_hidden": "EZ",
        "lin_hidden_to_hidden": "EE",
        "lin_hidden_to_mean": "DE",
        "lin_hidden_to_total_count": "DE",
    }
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def forward(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """``mean, total_count``, each ``[..., D]``, for ``z_t [..., Z]``."""
        pre_mean, pre_count = self._heads(z_t)
        return self.softplus(pre_mean), self.softplus(pre_count)


class CategoricalEmitter(_Emitter[EmitterWeights]):
    """Categorical emission p(x_t | z_t) of one-hot data: the softmax of the emitter's output."""

    _WEIGHTS: ClassVar = EmitterWeights
    _LAYERS: ClassVar = _ONE_HEAD
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU}

    def forward(self, z_t: Tensor) -> Tensor:
        """``probs [..., D]``, which sum to one, for ``z_t [..., Z]``."""
        (logits,) = self._heads(z_t)
        return torch.softmax(logits, -1)


class NadeEmitter(Network[NadeEmitterWeights]):
    """Emission p(x_t | z_t) of binary features that depend on one another, a NADE.

    The emitter's hidden layers give the logits ``b`` of all features and the initial state ``a_1`` of
    ``nade_dim`` units. The features are processed in order, with ``a_{d+1} = a_d + x_d write[d]``:
    ``p(x_d = 1 | x_{<d}, z) = sigmoid(b_d + read[d] . sigmoid(a_d))``.

    Args:
        input_dim: number of features ``D``.
        z_dim: width of the emitter's input.
        emission_dim: number of units ``E`` of each hidden layer.
        nade_dim: number of units ``U`` of the state.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011;
    arXiv 1609.09869, table 4 (DMM-NADE).
    """

    _WEIGHTS: ClassVar = NadeEmitterWeights
    _LAYERS: ClassVar = {
        "lin_z_to_hidden": "EZ",
        "lin_hidden_to_hidden": "EE",
        "lin_hidden_to_input": "DE",
        "lin_hidden_to_state": "UE",
    }
    _PARAMETERS: ClassVar = ("read", "write")
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU}

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int, nade_dim: int) -> None:
        super().__init__(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim, nade_dim=nade_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_input = nn.Linear(emission_dim, input_dim)
        self.lin_hidden_to_state = nn.Linear(emission_dim, nade_dim)
        bound = nade_dim**-0.5
        self.read = nn.Parameter(torch.empty(input_dim, nade_dim).uniform_(-bound, bound))
        self.write = nn.Parameter(torch.empty(input_dim, nade_dim).uniform_(-bound, bound))
        self.relu = nn.ReLU()

    def forward(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """``logits [..., D]`` and the initial state ``[..., U]`` for ``z_t [..., Z]``."""
        if self.what_changed() is None:
            weights = self.weights
            check.trailing("z_t", check.floating("z_t", z_t), weights.w_in.shape[1:], "[..., Z]")
            if not autocast_is_on():
                check.like("z_t", z_t, weights.w_in, "the weights")
            return nade_emitter(z_t, weights)
        hidden = self.relu(self.lin_hidden_to_hidden(self.relu(self.lin_z_to_hidden(z_t))))
        return self.lin_hidden_to_input(hidden), self.lin_hidden_to_state(hidden)
