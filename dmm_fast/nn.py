"""The networks of a Deep Markov Model, drop-in replacements for those of Pyro's ``examples/dmm.py``.

Parameter names, initialisation and the order of draws from the random generator are the example's, so a
checkpoint of either loads into the other with ``strict=True``, and the same seed gives the same network. The
older names ``*_mu`` and ``*_sigma`` load too.

A network may be changed like the example's: another activation (``emitter.relu = nn.Tanh()``), another
layer, hooks, parametrizations, a subclass with its own ``forward``. A network that still computes the same
function is computed by one fused op of :mod:`dmm_fast.ops`, any other layer by layer.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dmm_fast import check, ops
from dmm_fast._emitters import (
    CategoricalEmitter,
    Emitter,
    GaussianEmitter,
    NadeEmitter,
    NegativeBinomialEmitter,
    PoissonEmitter,
)
from dmm_fast._network import Network, NotFusedWarning, rename_former
from dmm_fast._network import why_not_fused as why_not_fused
from dmm_fast._recurrent import InferenceNetwork, TwoWayNetwork
from dmm_fast.ops import CombinerWeights, TransitionWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import MeanFieldWeights, mean_field

__all__ = [
    "CategoricalEmitter",
    "Combiner",
    "Emitter",
    "GatedTransition",
    "GaussianEmitter",
    "InferenceNetwork",
    "MeanFieldCombiner",
    "NadeEmitter",
    "NegativeBinomialEmitter",
    "NotFusedWarning",
    "PoissonEmitter",
    "TwoWayNetwork",
]


class GatedTransition(Network[TransitionWeights]):
    """Gated transition p(z_t | z_{t-1}); its linear part is initialised to the identity.

    If the transition also depends on past data or controls, these ``extra_dim`` further inputs follow
    z_{t-1}: ``z_t_1 [..., Z + extra_dim]``. Their weights in the linear part are initialised to zero.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """

    _WEIGHTS: ClassVar = TransitionWeights
    _LAYERS: ClassVar = {
        "lin_gate_z_to_hidden": "RI",
        "lin_gate_hidden_to_z": "ZR",
        "lin_proposed_mean_z_to_hidden": "RI",
        "lin_proposed_mean_hidden_to_z": "ZR",
        "lin_sig": "ZZ",
        "lin_z_to_loc": "ZI",
    }
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def __init__(self, z_dim: int, transition_dim: int, extra_dim: int = 0) -> None:
        super().__init__(z_dim=z_dim, transition_dim=transition_dim)
        inputs = z_dim + check.int_between("extra_dim", extra_dim, 0)
        self.lin_gate_z_to_hidden = nn.Linear(inputs, transition_dim)
        self.lin_gate_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_proposed_mean_z_to_hidden = nn.Linear(inputs, transition_dim)
        self.lin_proposed_mean_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_sig = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc = nn.Linear(inputs, z_dim)
        nn.init.eye_(self.lin_z_to_loc.weight)
        nn.init.zeros_(self.lin_z_to_loc.bias)
        self.relu, self.softplus = nn.ReLU(), nn.Softplus()
        self.register_load_state_dict_pre_hook(rename_former)

    def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of p(z_t | z_{t-1}), each ``[..., Z]``, for ``z_t_1 [..., Z + extra_dim]``."""
        if self.what_changed() is None:
            return ops.gated_transition(z_t_1, self.weights)
        gate = torch.sigmoid(self.lin_gate_hidden_to_z(self.relu(self.lin_gate_z_to_hidden(z_t_1))))
        hidden = self.relu(self.lin_proposed_mean_z_to_hidden(z_t_1))
        proposed_mean = self.lin_proposed_mean_hidden_to_z(hidden)
        loc = (1 - gate) * self.lin_z_to_loc(z_t_1) + gate * proposed_mean
        return loc, self.softplus(self.lin_sig(self.relu(proposed_mean)))


class Combiner(Network[CombinerWeights]):
    """The guide's step q(z_t | z_{t-1}, x), from z_{t-1} and the inference network's h_t.

    ``loc, pre_scale = W c_t + b`` with ``c_t = (tanh(W_z z_{t-1} + b_z) + h_t) / 2``. If the inference
    network reads in both directions, h_t is the sum of two terms and ``c_t`` is the mean of three.

    Args:
        z_dim: number of latents ``Z``.
        rnn_dim: number of units ``H`` of the inference network.
        num_directions: number of directions of time that are summed in h_t, 1 or 2.

    Source: arXiv 1609.09869, section 4; ``Combiner`` in Pyro's ``examples/dmm.py``.
    """

    _WEIGHTS: ClassVar = CombinerWeights
    _LAYERS: ClassVar = {"lin_z_to_hidden": "HZ", "lin_hidden_to_loc": "ZH", "lin_hidden_to_scale": "ZH"}
    _ACTIVATIONS: ClassVar = {"tanh": nn.Tanh, "softplus": nn.Softplus}

    def __init__(self, z_dim: int, rnn_dim: int, num_directions: int = 1) -> None:
        super().__init__(z_dim=z_dim, rnn_dim=rnn_dim)
        self.num_directions = check.int_between("num_directions", num_directions, 1, 2)
        self.lin_z_to_hidden = nn.Linear(z_dim, rnn_dim)
        self.lin_hidden_to_loc = nn.Linear(rnn_dim, z_dim)
        self.lin_hidden_to_scale = nn.Linear(rnn_dim, z_dim)
        self.tanh, self.softplus = nn.Tanh(), nn.Softplus()
        self.register_load_state_dict_pre_hook(rename_former)

    @property
    def weights(self) -> CombinerWeights:
        """The weights for the ops, which divide the sum of tanh and h by 2, whatever its number of terms."""
        weights = super().weights
        if self.num_directions == 1:
            return weights
        share = 2.0 / 3.0
        return weights._replace(w_loc=share * weights.w_loc, w_scale=share * weights.w_scale)

    def forward(self, z_t_1: Tensor, h_rnn: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., Z]``, for ``z_t_1 [..., Z]`` and ``h_rnn [..., H]``."""
        if self.what_changed() is None:
            return ops.combiner(z_t_1, h_rnn, self.weights)
        combined = (self.tanh(self.lin_z_to_hidden(z_t_1)) + h_rnn) / (1 + self.num_directions)
        return self.lin_hidden_to_loc(combined), self.softplus(self.lin_hidden_to_scale(combined))


class MeanFieldCombiner(Network[MeanFieldWeights]):
    """The guide's step q(z_t | x) of a mean-field guide, from the inference network's h_t alone.

    ``loc, pre_scale = W c_t + b`` with ``c_t = h_t``. If the inference network reads in both directions, h_t
    is the sum of two terms and ``c_t`` is their mean.

    Args:
        z_dim: number of latents ``Z``.
        rnn_dim: number of units ``H`` of the inference network.
        num_directions: number of directions of time that are summed in h_t, 1 or 2.

    Source: arXiv 1609.09869, section 4 and table 1 (MF-L, MF-LR).
    """

    _WEIGHTS: ClassVar = MeanFieldWeights
    _LAYERS: ClassVar = {"lin_hidden_to_loc": "ZH", "lin_hidden_to_scale": "ZH"}
    _ACTIVATIONS: ClassVar = {"softplus": nn.Softplus}

    def __init__(self, z_dim: int, rnn_dim: int, num_directions: int = 1) -> None:
        super().__init__(z_dim=z_dim, rnn_dim=rnn_dim)
        self.num_directions = check.int_between("num_directions", num_directions, 1, 2)
        self.lin_hidden_to_loc = nn.Linear(rnn_dim, z_dim)
        self.lin_hidden_to_scale = nn.Linear(rnn_dim, z_dim)
        self.softplus = nn.Softplus()

    @property
    def weights(self) -> MeanFieldWeights:
        """The weights that multiply h itself, be it of one direction or the sum of two."""
        weights = super().weights
        if self.num_directions == 1:
            return weights
        return weights._replace(w_loc=0.5 * weights.w_loc, w_scale=0.5 * weights.w_scale)

    def forward(self, h_rnn: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., Z]``, for ``h_rnn [..., H]``."""
        if self.what_changed() is None:
            weights = self.weights
            check.trailing("h_rnn", check.floating("h_rnn", h_rnn), weights.w_loc.shape[1:], "[..., H]")
            if not autocast_is_on():
                check.like("h_rnn", h_rnn, weights.w_loc, "the weights")
            return mean_field(h_rnn, weights)
        combined = h_rnn / self.num_directions
        return self.lin_hidden_to_loc(combined), self.softplus(self.lin_hidden_to_scale(combined))
