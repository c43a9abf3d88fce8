"""The networks of a Deep Markov Model, drop-in for those of Pyro's ``examples/dmm.py``.

Parameter names, initialisation and the order in which it draws from the random generator are the
example's, so a checkpoint of either loads into the other with ``strict=True`` and the same seed gives
the same network. The older names ``*_mu`` and ``*_sigma`` load too.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm_fast import check, ops
from dmm_fast.ops import (
    CombinerWeights,
    EmitterWeights,
    GaussianEmitterWeights,
    TransitionWeights,
)

_FORMER_NAMES = {
    "lin_z_to_mu": "lin_z_to_loc",
    "lin_hidden_to_mu": "lin_hidden_to_loc",
    "lin_hidden_to_sigma": "lin_hidden_to_scale",
}


def _rename_former(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for former, current in _FORMER_NAMES.items():
        if hasattr(module, current):
            for part in ("weight", "bias"):
                key = f"{prefix}{former}.{part}"
                if key in state:
                    state[f"{prefix}{current}.{part}"] = state.pop(key)


def _sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            check.fail(name, "a positive int", check.describe(size))


class Emitter(nn.Module):
    """Bernoulli emission p(x_t | z_t): ``probs = sigmoid(W_3 relu(W_2 relu(W_1 z)))``.

    Source: ``Emitter`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__()
        _sizes(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_input = nn.Linear(emission_dim, input_dim)

    @property
    def weights(self) -> EmitterWeights:
        """The weights as the ops take them."""
        layers = (self.lin_z_to_hidden, self.lin_hidden_to_hidden, self.lin_hidden_to_input)
        return EmitterWeights(*(p for layer in layers for p in (layer.weight, layer.bias)))

    def forward(self, z_t: Tensor) -> Tensor:
        """``probs [..., D]`` for ``z_t [..., Z]``."""
        return torch.sigmoid(ops.emitter(z_t, self.weights))


class GaussianEmitter(nn.Module):
    """Gaussian emission p(x_t | z_t): the emitter's hidden layers under a loc and a scale head."""

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__()
        _sizes(input_dim=input_dim, z_dim=z_dim, emission_dim=emission_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_loc = nn.Linear(emission_dim, input_dim)
        self.lin_hidden_to_scale = nn.Linear(emission_dim, input_dim)

    @property
    def weights(self) -> GaussianEmitterWeights:
        """The weights as the ops take them."""
        layers = (
            self.lin_z_to_hidden,
            self.lin_hidden_to_hidden,
            self.lin_hidden_to_loc,
            self.lin_hidden_to_scale,
        )
        return GaussianEmitterWeights(*(p for layer in layers for p in (layer.weight, layer.bias)))

    def forward(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., D]``, for ``z_t [..., Z]``."""
        loc, pre_scale = ops.gaussian_emitter(z_t, self.weights)
        return loc, F.softplus(pre_scale)


class GatedTransition(nn.Module):
    """Gated transition p(z_t | z_{t-1}); its linear part starts as the identity.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(self, z_dim: int, transition_dim: int) -> None:
        super().__init__()
        _sizes(z_dim=z_dim, transition_dim=transition_dim)
        self.lin_gate_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_gate_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_proposed_mean_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_proposed_mean_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_sig = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc = nn.Linear(z_dim, z_dim)
        nn.init.eye_(self.lin_z_to_loc.weight)
        nn.init.zeros_(self.lin_z_to_loc.bias)
        self.register_load_state_dict_pre_hook(_rename_former)

    @property
    def weights(self) -> TransitionWeights:
        """The weights as the ops take them."""
        layers = (
            self.lin_gate_z_to_hidden,
            self.lin_gate_hidden_to_z,
            self.lin_proposed_mean_z_to_hidden,
            self.lin_proposed_mean_hidden_to_z,
            self.lin_sig,
            self.lin_z_to_loc,
        )
        return TransitionWeights(*(p for layer in layers for p in (layer.weight, layer.bias)))

    def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of p(z_t | z_{t-1}), each ``[..., Z]``, for ``z_t_1 [..., Z]``."""
        return ops.gated_transition(z_t_1, self.weights)


class Combiner(nn.Module):
    """The guide's step q(z_t | z_{t-1}, x_{t:T}), from z_{t-1} and the inference network's h_t.

    Source: ``Combiner`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(self, z_dim: int, rnn_dim: int) -> None:
        super().__init__()
        _sizes(z_dim=z_dim, rnn_dim=rnn_dim)
        self.lin_z_to_hidden = nn.Linear(z_dim, rnn_dim)
        self.lin_hidden_to_loc = nn.Linear(rnn_dim, z_dim)
        self.lin_hidden_to_scale = nn.Linear(rnn_dim, z_dim)
        self.register_load_state_dict_pre_hook(_rename_former)

    @property
    def weights(self) -> CombinerWeights:
        """The weights as the ops take them."""
        layers = (self.lin_z_to_hidden, self.lin_hidden_to_loc, self.lin_hidden_to_scale)
        return CombinerWeights(*(p for layer in layers for p in (layer.weight, layer.bias)))

    def forward(self, z_t_1: Tensor, h_rnn: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale``, each ``[..., Z]``, for ``z_t_1 [..., Z]`` and ``h_rnn [..., H]``."""
        return ops.combiner(z_t_1, h_rnn, self.weights)


class InferenceNetwork(nn.Module):
    """The backward RNN of the guide: ``h_t`` summarises x_{t:T}.

    The parameters are those of ``nn.RNN`` under the same names; the batch is read backward from each
    row's own end, so nothing is reversed, sorted or packed.

    Args:
        input_size: features ``D`` of x_t.
        hidden_size: units ``H`` of each layer.
        num_layers: layers, each reading the one below in the same direction of time.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        dropout: probability of dropping an output of any layer but the last, while training.

    Source: arXiv 1609.09869, section 4; ``self.rnn`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if nonlinearity not in ("relu", "tanh"):
            check.fail("nonlinearity", "'relu' or 'tanh'", repr(nonlinearity))
        if not 0.0 <= dropout <= 1.0:
            check.fail("dropout", "a probability between 0 and 1", repr(dropout))
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.nonlinearity, self.dropout = num_layers, nonlinearity, dropout
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size
            for name, shape in (
                ("weight_ih", (hidden_size, inputs)),
                ("weight_hh", (hidden_size, hidden_size)),
                ("bias_ih", (hidden_size,)),
                ("bias_hh", (hidden_size,)),
            ):
                value = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_l{layer}", value)

    def forward(self, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
        """``h [..., B, T, H]`` for ``x [..., B, T, D]``; zero past the end of each row.

        Args:
            x: ``[..., B, T, D]``; what stands past the end of a row is not read.
            h_0: what every layer starts from; broadcastable to ``[..., B, H]``.
            lengths: int64 ``[B]``.

        Raises:
            ValueError: a shape, dtype, device or length that does not fit.
        """
        B, T, _ = check.sequences("x", x)
        check.trailing("x", x, (B, T, self.input_size), "[..., B, T, D]")
        check.lengths(lengths, B, T, x.device)
        h = x
        for layer in range(self.num_layers):
            w_ih, w_hh, b_ih, b_hh = (
                self.get_parameter(f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if layer > 0:
                h = F.dropout(h, self.dropout, self.training)
            x_proj = ops.input_projection(h, w_ih, b_ih + b_hh, lengths)
            h = ops.rnn_scan(x_proj, w_hh, h_0, lengths, self.nonlinearity)
        return h
