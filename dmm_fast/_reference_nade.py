"""The recursion of a NADE over features in eager PyTorch; public as :mod:`dmm_fast.reference`.

A NADE is a density of ``D`` binary features in a given order, each with a probability that depends on the
preceding ones: with ``logits`` b, a state of ``U`` units with initial value ``a_1``, and weights ``[D, U]``,

    p(x_d = 1 | x_{<d}) = sigmoid(b_d + w_read_d . sigmoid(a_d)),    a_{d+1} = a_d + x_d w_write_d.

Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast._reference_emissions import bernoulli_log_prob
from dmm_fast._reference_pieces import observed, valid_steps
from dmm_fast._weights import NadeEmitterWeights


def nade_emitter(z: Tensor, weights: NadeEmitterWeights) -> tuple[Tensor, Tensor]:
    """``logits [..., D]`` and the initial state ``[..., U]`` of a NADE p(x_t | z_t)."""
    w = weights
    hidden = F.relu(F.linear(F.relu(F.linear(z, w.w_in, w.b_in)), w.w_hidden, w.b_hidden))
    return F.linear(hidden, w.w_out, w.b_out), F.linear(hidden, w.w_state, w.b_state)


def nade_emission_log_prob(
    x: Tensor, z: Tensor, weights: NadeEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log NADE(x_t; nade_emitter(z_t)).

    A missing feature contributes no term and leaves the state unchanged.
    """
    keep = observed(lengths, z.shape[-2], mask)
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    logits, state = nade_emitter(torch.where(valid, z, 0.0), weights)
    logits = nade_logits(torch.where(keep, x, 0.0), logits, state, weights.w_read, weights.w_write)
    return bernoulli_log_prob(x, logits, lengths, mask)


def nade_logits(x: Tensor, logits: Tensor, state: Tensor, w_read: Tensor, w_write: Tensor) -> Tensor:
    """``[..., D]``: the logit of each feature given the preceding features in ``x``.

    Args:
        x: ``[..., D]``; 0 leaves the state unchanged, so it stands for a missing feature too.
        logits: ``[..., D]``, the part that does not depend on other features.
        state: ``[..., U]``, the initial state.
        w_read: ``[D, U]``.
        w_write: ``[D, U]``.
    """
    state = state.expand(*torch.broadcast_shapes(x.shape[:-1], state.shape[:-1]), -1)
    read: list[Tensor] = []
    for x_d, w_read_d, w_write_d in zip(x.unbind(-1), w_read, w_write, strict=True):
        read.append(torch.sigmoid(state) @ w_read_d)
        state = state + x_d.unsqueeze(-1) * w_write_d
    return logits + torch.stack(read, dim=-1)


def nade_draw(u: Tensor, logits: Tensor, state: Tensor, w_read: Tensor, w_write: Tensor) -> Tensor:
    """``x [..., D]``: feature by feature, 1 if ``u_d`` is below the feature's probability, else 0.

    Args:
        u: ``[..., D]``, uniform in ``[0, 1)``.
        logits: ``[..., D]``, the part that does not depend on other features.
        state: ``[..., U]``, the initial state.
        w_read: ``[D, U]``.
        w_write: ``[D, U]``.
    """
    drawn: list[Tensor] = []
    for u_d, logit_d, w_read_d, w_write_d in zip(
        u.unbind(-1), logits.unbind(-1), w_read, w_write, strict=True
    ):
        x_d = (u_d < torch.sigmoid(logit_d + torch.sigmoid(state) @ w_read_d)).to(logits.dtype)
        state = state + x_d.unsqueeze(-1) * w_write_d
        drawn.append(x_d)
    return torch.stack(drawn, dim=-1)
