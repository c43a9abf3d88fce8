"""The weights of the networks, as arguments of the ops and of their reference."""

from typing import NamedTuple

from torch import Tensor


class TransitionWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of the gated transition; ``R`` hidden units, ``Z`` latents.

    ``I`` inputs: z_{t-1}, followed by any further inputs of the transition.
    """

    w_gate_in: Tensor  # [R, I]
    b_gate_in: Tensor
    w_gate_out: Tensor  # [Z, R]
    b_gate_out: Tensor
    w_mean_in: Tensor  # [R, I]
    b_mean_in: Tensor
    w_mean_out: Tensor  # [Z, R]
    b_mean_out: Tensor
    w_scale: Tensor  # [Z, Z]
    b_scale: Tensor
    w_loc: Tensor  # [Z, I]
    b_loc: Tensor


class CombinerWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of the combiner; ``H`` inference-network units, ``Z`` latents."""

    w_z: Tensor  # [H, Z]
    b_z: Tensor
    w_loc: Tensor  # [Z, H]
    b_loc: Tensor
    w_scale: Tensor  # [Z, H]
    b_scale: Tensor


class MeanFieldWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of q(z_t | x) in a mean-field guide, a function of h_t alone."""

    w_loc: Tensor  # [Z, H]
    b_loc: Tensor
    w_scale: Tensor  # [Z, H]
    b_scale: Tensor


class FlowWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of ``K`` affine autoregressive flows with ``F`` hidden units.

    Masks are already applied: a weight that violates the order of the latents is zero.
    """

    w_in: Tensor  # [K, F, Z]
    b_in: Tensor  # [K, F]
    w_mean: Tensor  # [K, Z, F]
    b_mean: Tensor  # [K, Z]
    w_log_scale: Tensor  # [K, Z, F]
    b_log_scale: Tensor  # [K, Z]


class EmitterWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of the Bernoulli emitter; ``E`` hidden units, ``D`` outputs."""

    w_in: Tensor  # [E, Z]
    b_in: Tensor
    w_hidden: Tensor  # [E, E]
    b_hidden: Tensor
    w_out: Tensor  # [D, E]
    b_out: Tensor


class GaussianEmitterWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of the Gaussian emitter: two heads on the same hidden layers."""

    w_in: Tensor  # [E, Z]
    b_in: Tensor
    w_hidden: Tensor  # [E, E]
    b_hidden: Tensor
    w_loc: Tensor  # [D, E]
    b_loc: Tensor
    w_scale: Tensor  # [D, E]
    b_scale: Tensor


class NadeEmitterWeights(NamedTuple):
    """Weights ``[out, in]`` and biases of the NADE emitter: the emitter's hidden layers and two heads.

    One head gives the logits of all features, the other the initial state of ``U`` units. ``w_read`` maps the
    state to the logit of each feature in turn, and ``w_write`` adds each feature to the state.
    """

    w_in: Tensor  # [E, Z]
    b_in: Tensor
    w_hidden: Tensor  # [E, E]
    b_hidden: Tensor
    w_out: Tensor  # [D, E]
    b_out: Tensor
    w_state: Tensor  # [U, E]
    b_state: Tensor
    w_read: Tensor  # [D, U]
    w_write: Tensor  # [D, U]
