r"""The definition of correct: every op of the package in eager PyTorch, in any floating dtype.

The layout is ``[..., B, T, D]``: particles on the left, then batch, time and features. ``lengths`` is int64
of shape ``(B,)`` and a step ``t`` (from 0) of row ``b`` is *valid* if ``t < lengths[b]``. Entries at invalid
steps or under a mask, including NaN, have no effect on values or gradients.
Log-probabilities and divergences are in nats and are taken from the pre-activation of the scale
(``scale = softplus(pre_scale)``), so they stay finite where the scale itself underflows to zero.

Source: Krishnan, Shalit and Sontag, "Structured Inference Networks for Nonlinear State Space Models",
arXiv 1609.09869, sections 4 and 5; parameterised as in Pyro's ``examples/dmm.py``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast._reference_emissions import bernoulli_log_prob as bernoulli_log_prob
from dmm_fast._reference_emissions import categorical_emission_log_prob as categorical_emission_log_prob
from dmm_fast._reference_emissions import categorical_log_prob as categorical_log_prob
from dmm_fast._reference_emissions import emission_log_prob as emission_log_prob
from dmm_fast._reference_emissions import emitter as emitter
from dmm_fast._reference_emissions import gaussian_emission_log_prob as gaussian_emission_log_prob
from dmm_fast._reference_emissions import gaussian_emitter as gaussian_emitter
from dmm_fast._reference_emissions import (
    negative_binomial_emission_log_prob as negative_binomial_emission_log_prob,
)
from dmm_fast._reference_emissions import negative_binomial_log_density as negative_binomial_log_density
from dmm_fast._reference_emissions import normal_log_prob as normal_log_prob
from dmm_fast._reference_emissions import poisson_emission_log_prob as poisson_emission_log_prob
from dmm_fast._reference_emissions import poisson_log_density as poisson_log_density
from dmm_fast._reference_nade import nade_draw as nade_draw
from dmm_fast._reference_nade import nade_emission_log_prob as nade_emission_log_prob
from dmm_fast._reference_nade import nade_emitter as nade_emitter
from dmm_fast._reference_nade import nade_logits as nade_logits
from dmm_fast._reference_pieces import HALF_LOG_2PI, positive_softplus, sum_normal
from dmm_fast._reference_pieces import log_softplus as log_softplus
from dmm_fast._reference_pieces import observed as observed
from dmm_fast._reference_pieces import previous as previous
from dmm_fast._reference_pieces import sum_steps as sum_steps
from dmm_fast._reference_pieces import valid_steps as valid_steps
from dmm_fast._weights import CombinerWeights as CombinerWeights
from dmm_fast._weights import EmitterWeights as EmitterWeights
from dmm_fast._weights import FlowWeights as FlowWeights
from dmm_fast._weights import GaussianEmitterWeights as GaussianEmitterWeights
from dmm_fast._weights import MeanFieldWeights as MeanFieldWeights
from dmm_fast._weights import NadeEmitterWeights as NadeEmitterWeights
from dmm_fast._weights import TransitionWeights as TransitionWeights

FLOW_LOG_SCALES = (-5.0, 3.0)
"""Bounds of the logarithm of a flow's scale, as in Pyro."""


# --- rowwise --------------------------------------------------------------------------------------


def _gated_transition(z_prev: Tensor, w: TransitionWeights) -> tuple[Tensor, Tensor]:
    gate = F.linear(F.relu(F.linear(z_prev, w.w_gate_in, w.b_gate_in)), w.w_gate_out, w.b_gate_out)
    gate = torch.sigmoid(gate)
    hidden = F.relu(F.linear(z_prev, w.w_mean_in, w.b_mean_in))
    proposed_mean = F.linear(hidden, w.w_mean_out, w.b_mean_out)
    loc = (1 - gate) * F.linear(z_prev, w.w_loc, w.b_loc) + gate * proposed_mean
    return loc, F.linear(F.relu(proposed_mean), w.w_scale, w.b_scale)


def gated_transition(z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, Tensor]:
    """``loc, scale`` of p(z_t | z_{t-1}, inputs_t), each ``[..., Z]``, from ``[z_{t-1}, inputs_t]``."""
    loc, pre_scale = _gated_transition(z_prev, weights)
    return loc, F.softplus(pre_scale)


def clamp_log_scale(log_scale: Tensor) -> Tensor:
    """The logarithm of a flow's scale, clamped to :data:`FLOW_LOG_SCALES`; gradients pass unchanged."""
    return log_scale + (log_scale.clamp(*FLOW_LOG_SCALES) - log_scale).detach()


def affine_flows(x: Tensor, weights: FlowWeights) -> tuple[Tensor, Tensor]:
    """``y [..., Z]`` and the log-determinant ``[...]`` of the composition of all flows at ``x [..., Z]``.

    A flow is ``y_j = exp(s_j) x_j + m_j``, where ``m_j`` and ``s_j`` depend on the ``x_i`` that precede
    ``x_j`` in its order: ``m, s = W (relu(W_in x + b_in)) + b``.

    Source: arXiv 1606.04934, eq. 10; ``AffineAutoregressive`` of Pyro.
    """
    log_det = x.new_zeros(x.shape[:-1])
    for w_in, b_in, w_mean, b_mean, w_log_scale, b_log_scale in zip(*weights, strict=True):
        hidden = F.relu(F.linear(x, w_in, b_in))
        log_scale = clamp_log_scale(F.linear(hidden, w_log_scale, b_log_scale))
        x = log_scale.exp() * x + F.linear(hidden, w_mean, b_mean)
        log_det = log_det + log_scale.sum(-1)
    return x, log_det


def mean_field(h: Tensor, weights: MeanFieldWeights) -> tuple[Tensor, Tensor]:
    """``loc, scale`` of q(z_t | x), each ``[..., Z]``, for ``h [..., H]``."""
    loc = F.linear(h, weights.w_loc, weights.b_loc)
    return loc, F.softplus(F.linear(h, weights.w_scale, weights.b_scale))


def _combiner(z_prev: Tensor, h: Tensor, w: CombinerWeights) -> tuple[Tensor, Tensor]:
    combined = 0.5 * (torch.tanh(F.linear(z_prev, w.w_z, w.b_z)) + h)
    return F.linear(combined, w.w_loc, w.b_loc), F.linear(combined, w.w_scale, w.b_scale)


def combiner(z_prev: Tensor, h: Tensor, weights: CombinerWeights) -> tuple[Tensor, Tensor]:
    """``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}), each ``[..., Z]``; ``h`` is ``[..., H]``."""
    loc, pre_scale = _combiner(z_prev, h, weights)
    return loc, F.softplus(pre_scale)


# --- rowwise, reduced over time ---------------------------------------------------------------------


def transition_log_prob(z: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor) -> Tensor:
    """``[..., B]``: sum over valid t of log N(z_t; gated_transition(z_{t-1}))."""
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    z = torch.where(valid, z, 0.0)
    loc, pre_scale = _gated_transition(previous(z, z_0), weights)
    return sum_normal(z, loc, pre_scale, valid)


def transition_kl(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor
) -> Tensor:
    """``[..., B]``: sum over valid t of KL(N(loc_t, softplus(pre_scale_t)) || p(z_t | z_{t-1}))."""
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    z, loc, pre_scale = (torch.where(valid, v, 0.0) for v in (z, loc, pre_scale))
    loc_p, pre_scale_p = _gated_transition(previous(z, z_0), weights)
    pre_scale_p = torch.where(valid, pre_scale_p, 0.0)
    log_ratio = log_softplus(pre_scale) - log_softplus(pre_scale_p)
    residual = (loc - loc_p) / positive_softplus(pre_scale_p)
    terms = 0.5 * ((2.0 * log_ratio).expm1() + residual.square()) - log_ratio
    return sum_steps(terms, valid)


def combiner_log_prob(
    z: Tensor, h: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> Tensor:
    """``[..., B]``: sum over valid t of log q(z_t | z_{t-1}, x_{t:T}) at any ``z``."""
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    z, h = torch.where(valid, z, 0.0), torch.where(valid, h, 0.0)
    # Only h may have particles, and with them initial states that differ between particles.
    z = z.expand(*torch.broadcast_shapes(z.shape[:-2], h.shape[:-2]), *z.shape[-2:])
    loc, pre_scale = _combiner(previous(z, z_q_0), h, weights)
    return sum_normal(z, loc, pre_scale, valid)


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """``[..., B]``: log-density of ``z = loc + scale * eps``, computed from its noise without a division."""
    valid = valid_steps(lengths, eps.shape[-2]).unsqueeze(-1)
    eps, pre_scale = torch.where(valid, eps, 0.0), torch.where(valid, pre_scale, 0.0)
    return sum_steps(-0.5 * eps.square() - log_softplus(pre_scale) - HALF_LOG_2PI, valid)


# --- scans ------------------------------------------------------------------------------------------


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    """``x_proj [..., B, T, H]``: ``x_proj_t = W x_t + b`` at valid steps and 0 past the end."""
    valid = valid_steps(lengths, x.shape[-2]).unsqueeze(-1)
    return torch.where(valid, F.linear(torch.where(valid, x, 0.0), w, b), 0.0)


def rnn_scan(
    x_proj: Tensor,
    w_hh: Tensor,
    h_0: Tensor,
    lengths: Tensor,
    nonlinearity: str = "relu",
    direction: str = "backward",
) -> Tensor:
    """``h [..., B, T, H]``: ``h_t = f(x_proj_t + W_hh h_{t+1})`` at valid steps; with ``h_{t-1}`` if forward.

    Row ``b`` starts from ``h_0``, backward at ``t = lengths[b] - 1``, forward at 0; past the end ``h = 0``.
    """
    activation = torch.relu if nonlinearity == "relu" else torch.tanh
    order = -1 if direction == "backward" else 1
    valid = valid_steps(lengths, x_proj.shape[-2])
    inputs = torch.where(valid.unsqueeze(-1), x_proj, 0.0).unbind(-2)
    h = h_0.expand_as(inputs[0])
    steps: list[Tensor] = []
    for x_t, active in zip(inputs[::order], valid.unbind(-1)[::order], strict=True):
        h = torch.where(active.unsqueeze(-1), activation(x_t + F.linear(h, w_hh)), h)
        steps.append(h)
    return torch.stack(steps[::order], dim=-2).masked_fill(~valid.unsqueeze(-1), 0.0)


def transition_scan(
    eps: Tensor, z_0: Tensor, inputs: Tensor, weights: TransitionWeights, lengths: Tensor
) -> Tensor:
    """``z [..., B, T, Z]``: a draw of the prior chain, forward in time and 0 past the end.

    ``z_t = loc + scale eps_t`` with ``loc, scale = gated_transition([z_{t-1}, inputs_t])``; ``inputs`` is
    ``[..., B, T, X]``.
    """
    valid = valid_steps(lengths, eps.shape[-2]).unsqueeze(-1)
    eps, inputs = torch.where(valid, eps, 0.0), torch.where(valid, inputs, 0.0)
    lead = torch.broadcast_shapes(eps.shape[:-2], inputs.shape[:-2])
    z_t = z_0.expand(*lead, eps.shape[-1])
    steps: list[Tensor] = []
    for eps_t, inputs_t, active in zip(eps.unbind(-2), inputs.unbind(-2), valid.unbind(-2), strict=True):
        loc, scale = gated_transition(torch.cat([z_t, inputs_t.expand(*lead, -1)], dim=-1), weights)
        # A chain that continued past the end of its row could grow without bound.
        z_t = torch.where(active, loc + scale * eps_t, 0.0)
        steps.append(z_t)
    return torch.stack(steps, dim=-2)


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[..., B, T, Z]``, forward in time; all three 0 past the end.

    ``loc_t, pre_scale_t = combiner(z_{t-1}, h_t)`` and ``z_t = loc_t + softplus(pre_scale_t) eps_t``.
    """
    z, loc, pre_scale, _ = _combiner_scan(h, eps, z_q_0, weights, None, lengths)
    return z, loc, pre_scale


def flow_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    weights: CombinerWeights,
    flow_weights: FlowWeights,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[..., B, T, Z]``, and ``log_det [..., B]``: the scan with flows.

    ``loc_t, pre_scale_t = combiner(z_{t-1}, h_t)`` and ``z_t = flows(loc_t + softplus(pre_scale_t) eps_t)``;
    all are 0 past the end. ``log_det`` is the flows' log-determinant, summed over valid steps.
    """
    return _combiner_scan(h, eps, z_q_0, weights, flow_weights, lengths)


def _combiner_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    weights: CombinerWeights,
    flow_weights: FlowWeights | None,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    valid = valid_steps(lengths, eps.shape[-2]).unsqueeze(-1)
    h_steps = torch.where(valid, h, 0.0).unbind(-2)
    eps_steps = torch.where(valid, eps, 0.0).unbind(-2)
    w_out = torch.cat([weights.w_loc, weights.w_scale])
    b_out = torch.cat([weights.b_loc, weights.b_scale])
    lead = torch.broadcast_shapes(eps.shape[:-2], h.shape[:-2])
    z_t = z_q_0.expand(*lead, eps.shape[-1])
    log_det = z_t.new_zeros(lead)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for t, (h_t, eps_t) in enumerate(zip(h_steps, eps_steps, strict=True)):
        combined = 0.5 * (torch.tanh(F.linear(z_t, weights.w_z, weights.b_z)) + h_t)
        loc, pre_scale = F.linear(combined, w_out, b_out).chunk(2, dim=-1)
        z_t = loc + F.softplus(pre_scale) * eps_t
        if flow_weights is not None:
            z_t, log_det_t = affine_flows(z_t, flow_weights)
            # A chain that continued past the end of its row could grow without bound.
            z_t = torch.where(valid[:, t], z_t, 0.0)
            log_det = log_det + torch.where(valid[:, t, 0], log_det_t, 0.0)
        steps.append((z_t, loc, pre_scale))
    z, loc, pre_scale = (torch.stack(s, dim=-2).masked_fill(~valid, 0.0) for s in zip(*steps, strict=True))
    return z, loc, pre_scale, log_det


# --- multi-tensor ----------------------------------------------------------------------------------


def clipped_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int | Tensor | list[Tensor],
    lr: float | Tensor | list[Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    centered_variance: bool = False,
    lrd: float | None = None,
) -> None:
    """A step of Adam with clipped gradients, in place; one ``torch._foreach`` call per operation."""
    with torch.no_grad():
        if lrd is not None:
            count_and_decay(step, lr, lrd)
        torch._foreach_clamp_min_(grads, -clip_norm)
        torch._foreach_clamp_max_(grads, clip_norm)
        decayed: list[Tensor] | tuple[Tensor, ...] = grads
        if weight_decay != 0:
            decayed = torch._foreach_add(grads, params, alpha=weight_decay)

        torch._foreach_mul_(exp_avgs, beta1)
        torch._foreach_add_(exp_avgs, decayed, alpha=1 - beta1)
        deviations = torch._foreach_sub(decayed, exp_avgs) if centered_variance else decayed
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, deviations, deviations, value=1 - beta2)

        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, eps)
        step_size = _adam_step_size(step, lr, beta1, beta2)
        if isinstance(step_size, Tensor):
            _move_by(step_size, params, exp_avgs, denominators)
        else:
            torch._foreach_addcdiv_(params, exp_avgs, denominators, value=-step_size)


def count_and_decay(steps: Any, lrs: Any, lrd: float) -> None:
    """Increment the step counts and decay the learning rates, in place.

    Args:
        steps: step counts, a tensor or a list of tensors; a tensor that occurs several times is counted once.
        lrs: learning rates, likewise.
        lrd: factor applied to the learning rates.
    """
    counts, rates = ([n] if isinstance(n, Tensor) else list(dict.fromkeys(n)) for n in (steps, lrs))
    torch._foreach_add_(counts, 1)
    torch._foreach_mul_(rates, lrd)


def _adam_step_size(
    step: int | Tensor | list[Tensor], lr: float | Tensor | list[Tensor], beta1: float, beta2: float
) -> float | Tensor:
    """The learning rate times the bias correction of the moments, in double precision.

    A float if both arguments are numbers; else a tensor, with one element per parameter for lists.
    """
    count, rate = (torch.stack(n) if isinstance(n, list) else n for n in (step, lr))
    if isinstance(count, Tensor):
        count = count.double()
        return rate * torch.sqrt(1 - beta2**count) / (1 - beta1**count)
    return rate * math.sqrt(1 - beta2**count) / (1 - beta1**count)


def _move_by(
    step_size: Tensor,
    params: list[Tensor],
    exp_avgs: list[Tensor],
    denominators: list[Tensor] | tuple[Tensor, ...],
) -> None:
    """``torch._foreach_addcdiv_`` with a tensor as ``value``, computed in float32 for half precision."""
    wide = torch.promote_types(params[0].dtype, torch.float32)
    step_sizes = step_size.to(wide).expand(len(params))
    for p, m, denominator, size in zip(params, exp_avgs, denominators, step_sizes, strict=True):
        p.sub_(size * m.to(wide) / denominator)
