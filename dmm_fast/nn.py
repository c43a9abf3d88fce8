"""The networks of a Deep Markov Model, drop-in for those of Pyro's ``examples/dmm.py``.

Parameter names, initialisation and the order in which it draws from the random generator are the
example's, so a checkpoint of either loads into the other with ``strict=True`` and the same seed gives
the same network. The older names ``*_mu`` and ``*_sigma`` load too.

A network may be changed like the example's: another activation (``emitter.relu = nn.Tanh()``), another
layer, hooks, parametrizations, a subclass with a ``forward`` of its own. An op of :mod:`dmm_fast.ops`
computes it as long as it is what the op computes (:func:`why_not_fused`); else its layers do, one by one.
"""

from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dmm_fast import check, ops
from dmm_fast._recurrent import InferenceNetwork, TwoWayNetwork
from dmm_fast.ops import CombinerWeights, EmitterWeights, GaussianEmitterWeights, TransitionWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import MeanFieldWeights, mean_field

__all__ = [
    "Combiner",
    "Emitter",
    "GatedTransition",
    "GaussianEmitter",
    "InferenceNetwork",
    "MeanFieldCombiner",
    "TwoWayNetwork",
]

_FORMER_NAMES = {
    "lin_z_to_mu": "lin_z_to_loc",
    "lin_hidden_to_mu": "lin_hidden_to_loc",
    "lin_hidden_to_sigma": "lin_hidden_to_scale",
}


_Weights = TypeVar("_Weights")


def rename_former(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give what is for parameters of ``module`` under their older names in ``state`` their names of today."""
    for former, current in _FORMER_NAMES.items():
        if hasattr(module, current):
            for part in ("weight", "bias"):
                key = f"{prefix}{former}.{part}"
                if key in state:
                    state[f"{prefix}{current}.{part}"] = state.pop(key)


class _Network(nn.Module, Generic[_Weights]):
    """A network whose layers one op computes, unless something in them was changed.

    Its attributes are the layers, each with the letters of its outputs and inputs, in the order in which
    the op takes their weights, and the kinds of its activations.
    """

    _WEIGHTS: ClassVar[type[Any]]
    _LAYERS: ClassVar[dict[str, str]]
    _ACTIVATIONS: ClassVar[dict[str, type[nn.Module]]]

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            check.size(name, size)

    @property
    def weights(self) -> _Weights:
        """The weights as the ops take them."""
        layers: list[Any] = [self._modules[name] for name in self._LAYERS]
        weights: _Weights = self._WEIGHTS(*(tensor for each in layers for tensor in (each.weight, each.bias)))
        return weights

    def what_changed(self) -> str | None:
        """Say what in the layers is not as the op has it; None where all is."""
        if torch_module._has_any_global_hook():
            return "every module has hooks"
        sizes: dict[str, int] = {}
        for name, letters in self._LAYERS.items():
            layer = self._modules[name]
            if reason := _layer_change(layer, letters, sizes):
                return f"its {name} {reason}"
        for name, kind in self._ACTIVATIONS.items():
            activation = self._modules[name]
            if reason := _activation_change(activation, kind):
                return f"its {name} {reason}"
        return None


class Emitter(_Network[EmitterWeights]):
    """Bernoulli emission p(x_t | z_t): ``probs = sigmoid(W_3 relu(W_2 relu(W_1 z)))``.

    Source: ``Emitter`` in Pyro's ``examples/dmm.py``.
    """

    _WEIGHTS: ClassVar = EmitterWeights
    _LAYERS: ClassVar = {"lin_z_to_hidden": "EZ", "lin_hidden_to_hidden": "EE", "lin_hidden_to_input": "DE"}
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU}

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_input = nn.Linear(emission_dim, input_dim)
        self.relu = nn.ReLU()

    def forward(self, z_t: Tensor) -> Tensor:
        """``probs [..., D]`` for ``z_t [..., Z]``."""
        if self.what_changed() is None:
            return torch.sigmoid(ops.emitter(z_t, self.weights))
        hidden = self.relu(self.lin_hidden_to_hidden(self.relu(self.lin_z_to_hidden(z_t))))
        return torch.sigmoid(self.lin_hidden_to_input(hidden))


class GaussianEmitter(_Network[GaussianEmitterWeights]):
    """Gaussian emission p(x_t | z_t): the emitter's hidden layers under a loc and a scale head."""

    _WEIGHTS: ClassVar = GaussianEmitterWeights
    _LAYERS: ClassVar = {
        "lin_z_to_hidden": "EZ",
        "lin_hidden_to_hidden": "EE",
        "lin_hidden_to_loc": "DE",
        "lin_hidden_to_scale": "DE",
    }
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_loc = nn.Linear(emission_dim, input_dim)
        self.lin_hidden_to_scale = nn.Linear(emission_dim, input_dim)
        self.relu, self.softplus = nn.ReLU(), nn.Softplus()

    def forward(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., D]``, for ``z_t [..., Z]``."""
        if self.what_changed() is None:
            loc, pre_scale = ops.gaussian_emitter(z_t, self.weights)
            return loc, F.softplus(pre_scale)
        hidden = self.relu(self.lin_hidden_to_hidden(self.relu(self.lin_z_to_hidden(z_t))))
        return self.lin_hidden_to_loc(hidden), self.softplus(self.lin_hidden_to_scale(hidden))


class GatedTransition(_Network[TransitionWeights]):
    """Gated transition p(z_t | z_{t-1}); its linear part starts as the identity.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """

    _WEIGHTS: ClassVar = TransitionWeights
    _LAYERS: ClassVar = {
        "lin_gate_z_to_hidden": "RZ",
        "lin_gate_hidden_to_z": "ZR",
        "lin_proposed_mean_z_to_hidden": "RZ",
        "lin_proposed_mean_hidden_to_z": "ZR",
        "lin_sig": "ZZ",
        "lin_z_to_loc": "ZZ",
    }
    _ACTIVATIONS: ClassVar = {"relu": nn.ReLU, "softplus": nn.Softplus}

    def __init__(self, z_dim: int, transition_dim: int) -> None:
        super().__init__(z_dim=z_dim, transition_dim=transition_dim)
        self.lin_gate_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_gate_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_proposed_mean_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_proposed_mean_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_sig = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc = nn.Linear(z_dim, z_dim)
        nn.init.eye_(self.lin_z_to_loc.weight)
        nn.init.zeros_(self.lin_z_to_loc.bias)
        self.relu, self.softplus = nn.ReLU(), nn.Softplus()
        self.register_load_state_dict_pre_hook(rename_former)

    def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of p(z_t | z_{t-1}), each ``[..., Z]``, for ``z_t_1 [..., Z]``."""
        if self.what_changed() is None:
            return ops.gated_transition(z_t_1, self.weights)
        gate = torch.sigmoid(self.lin_gate_hidden_to_z(self.relu(self.lin_gate_z_to_hidden(z_t_1))))
        hidden = self.relu(self.lin_proposed_mean_z_to_hidden(z_t_1))
        proposed_mean = self.lin_proposed_mean_hidden_to_z(hidden)
        loc = (1 - gate) * self.lin_z_to_loc(z_t_1) + gate * proposed_mean
        return loc, self.softplus(self.lin_sig(self.relu(proposed_mean)))


class Combiner(_Network[CombinerWeights]):
    """The guide's step q(z_t | z_{t-1}, x), from z_{t-1} and the inference network's h_t.

    ``loc, pre_scale = W c_t + b`` of ``c_t = (tanh(W_z z_{t-1} + b_z) + h_t) / 2``. Where the inference
    network reads in both directions h_t is the sum of two and ``c_t`` the mean of the three terms.

    Args:
        z_dim: latents ``Z``.
        rnn_dim: units ``H`` of the inference network.
        num_directions: of time that h_t is the sum of, 1 or 2.

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
        """The weights as the ops take them, which halve the sum of tanh and h."""
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


class MeanFieldCombiner(_Network[MeanFieldWeights]):
    """The guide's step q(z_t | x) of a mean-field guide, from the inference network's h_t alone.

    ``loc, pre_scale = W c_t + b`` with ``c_t = h_t``. Where the inference network reads in both directions
    h_t is the sum of two and ``c_t`` their mean.

    Args:
        z_dim: latents ``Z``.
        rnn_dim: units ``H`` of the inference network.
        num_directions: of time that h_t is the sum of, 1 or 2.

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
        """The weights by h itself, be it of one direction or a sum of two."""
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


class NotFusedWarning(UserWarning):
    """A network of a model was changed, so that its own layers compute it and no fused op."""


def why_not_fused(module: nn.Module, network: type[_Network[Any]]) -> str | None:
    """Say why ``module`` is not just the weights of an op: what in it is another than in ``network``.

    None where it is: its layers and activations are as they were built, apart from the values of their
    weights, and neither a ``forward`` of its own nor a hook has anything to add. Parametrized weights count
    as weights.
    """
    if not isinstance(module, network):
        return f"it is a {type(module).__name__}"
    is_called_as_built = type(module).__call__ is nn.Module.__call__
    if type(module).forward is not network.forward or "forward" in vars(module) or not is_called_as_built:
        return "it has a forward of its own"
    return "it has hooks" if has_hooks(module) else module.what_changed()


def _layer_change(layer: nn.Module | None, letters: str, sizes: dict[str, int]) -> str | None:
    """Say in what ``layer`` is no linear layer of the sizes known by their letters."""
    if not isinstance(layer, nn.Linear):
        return f"is a {type(layer).__name__}"
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        return "has a forward of its own"
    # A parametrized bias is none of the layer's own parameters.
    if layer._parameters.get("bias", layer) is None:
        return "has no bias"
    for letter, size in ((letters[0], layer.out_features), (letters[1], layer.in_features)):
        if sizes.setdefault(letter, size) != size:
            return f"has {size} features where {sizes[letter]} are expected"
    return "has hooks" if has_hooks(layer) else None


def _activation_change(activation: nn.Module | None, kind: type[nn.Module]) -> str | None:
    if type(activation) is not kind or "forward" in vars(activation):
        return f"is a {type(activation).__name__}"
    if isinstance(activation, nn.Softplus) and (activation.beta, activation.threshold) != (1, 20):
        return "has another beta or threshold"
    return "has hooks" if has_hooks(activation) else None


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` does more than its ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
