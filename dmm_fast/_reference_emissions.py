"""The reference of the emitters and of the log-probabilities of data, public as :mod:`dmm_fast.reference`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast._reference_pieces import (
    HALF_LOG_2PI,
    log_softplus,
    observed,
    positive_softplus,
    sum_normal,
    sum_steps,
    valid_steps,
)
from dmm_fast._weights import EmitterWeights, GaussianEmitterWeights

# --- the emitters ---------------------------------------------------------------------------------


def emitter(z: Tensor, weights: EmitterWeights) -> Tensor:
    """``logits [..., D]`` of p(x_t | z_t)."""
    w = weights
    hidden = F.relu(F.linear(F.relu(F.linear(z, w.w_in, w.b_in)), w.w_hidden, w.b_hidden))
    return F.linear(hidden, w.w_out, w.b_out)


def gaussian_emitter(z: Tensor, weights: GaussianEmitterWeights) -> tuple[Tensor, Tensor]:
    """``loc, pre_scale`` of a Gaussian p(x_t | z_t), each ``[..., D]``."""
    w = weights
    hidden = F.relu(F.linear(F.relu(F.linear(z, w.w_in, w.b_in)), w.w_hidden, w.b_hidden))
    return F.linear(hidden, w.w_loc, w.b_loc), F.linear(hidden, w.w_scale, w.b_scale)


# --- log-probabilities, reduced over time ---------------------------------------------------------


def emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log Bernoulli(x_t; logits = emitter(z_t))."""
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    return bernoulli_log_prob(x, emitter(torch.where(valid, z, 0.0), weights), lengths, mask)


def gaussian_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log N(x_t; gaussian_emitter(z_t))."""
    keep = observed(lengths, z.shape[-2], mask)
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    loc, pre_scale = gaussian_emitter(torch.where(valid, z, 0.0), weights)
    return sum_normal(torch.where(keep, x, 0.0), loc, pre_scale, keep)


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log N(value; loc, scale)."""
    keep = observed(lengths, value.shape[-2], mask)
    value, loc = torch.where(keep, value, 0.0), torch.where(keep, loc, 0.0)
    scale = torch.where(keep, scale, 1.0)
    terms = -0.5 * ((value - loc) / scale).square() - scale.log() - HALF_LOG_2PI
    return sum_steps(terms, keep)


def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[..., B]``: sum over observed entries of log Bernoulli(x; sigmoid(logits))."""
    keep = observed(lengths, x.shape[-2], mask)
    x, logits = torch.broadcast_tensors(torch.where(keep, x, 0.0), torch.where(keep, logits, 0.0))
    return sum_steps(-F.binary_cross_entropy_with_logits(logits, x, reduction="none"), keep)


# --- counts and categories ------------------------------------------------------------------------


def poisson_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log Poisson(x_t; rate = softplus(emitter(z_t)))."""
    keep = observed(lengths, z.shape[-2], mask)
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    out = emitter(torch.where(valid, z, 0.0), weights)
    terms = poisson_log_density(torch.where(keep, x, 0.0), F.softplus(out), log_softplus(out))
    return sum_steps(terms, keep)


def poisson_log_density(x: Tensor, rate: Tensor, log_rate: Tensor) -> Tensor:
    """``x log(rate) - rate - log(x!)``, elementwise."""
    return x * log_rate - rate - torch.lgamma(x + 1)


def negative_binomial_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over observed entries of log NB(x_t; mean, total_count).

    The mean is the softplus of the first head of ``gaussian_emitter(z_t)``, the total count that of the
    second.
    """
    keep = observed(lengths, z.shape[-2], mask)
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    pre_mean, pre_count = gaussian_emitter(torch.where(valid, z, 0.0), weights)
    # Dropped entries would still contribute infinite gradients where a total count vanishes.
    pre_mean, pre_count = torch.where(keep, pre_mean, 0.0), torch.where(keep, pre_count, 0.0)
    terms = negative_binomial_log_density(
        torch.where(keep, x, 0.0),
        positive_softplus(pre_count),
        log_softplus(pre_count),
        log_softplus(pre_mean),
    )
    return sum_steps(terms, keep)


def negative_binomial_log_density(
    x: Tensor, total_count: Tensor, log_total_count: Tensor, log_mean: Tensor
) -> Tensor:
    """``log NB(x; mean, total_count)``, elementwise.

    With total count ``r`` and mean ``m`` it is ``log(G(x + r) / (G(r) x!)) + r log(r / (r + m)) +
    x log(m / (r + m))``, where ``G`` is the gamma function. The variance is ``m + m^2 / r``.
    """
    log_odds = log_mean - log_total_count
    # log((x + r) / r) turns G(1 + r + x) / G(1 + r) into G(r + x) / G(r) and stays finite as r vanishes. At
    # x = 0 its second-order expansion is used, which has the right first and second derivatives.
    some = x != 0
    shifted = torch.where(some, x, 1.0) + total_count
    share = torch.where(some, 0.0, x) / total_count
    log_ratio = torch.where(some, shifted.log() - log_total_count, share - 0.5 * share.square())
    log_gammas = torch.lgamma(1 + total_count + x) - torch.lgamma(1 + total_count) - torch.lgamma(x + 1)
    return log_gammas - log_ratio + total_count * F.logsigmoid(-log_odds) + x * F.logsigmoid(log_odds)


def categorical_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """``[..., B]``: sum over valid t of log Categorical(x_t; logits = emitter(z_t)), ``x_t`` one-hot.

    Missing entries are summed over: see :func:`categorical_log_prob`.
    """
    valid = valid_steps(lengths, z.shape[-2]).unsqueeze(-1)
    logits = emitter(torch.where(valid, z, 0.0), weights)
    return categorical_log_prob(x, F.log_softmax(logits, -1), lengths, mask)


def categorical_log_prob(x: Tensor, log_probs: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[..., B]``: sum over valid t of the log-probability of the observed entries of ``x_t``.

    If the one is observed, it is the log-probability of its category; if all observed entries are zero, it is
    that of the event that the category is one of the missing ones.
    """
    keep = observed(lengths, log_probs.shape[-2], mask).expand(*lengths.shape, *log_probs.shape[-2:])
    any_kept, any_missing = keep.any(-1), ~keep.all(-1)
    x = torch.where(keep, x, 0.0)
    of_observed = (x * log_probs).sum(-1)
    # If no entry is missing, the logsumexp would be over no category, with NaN gradients.
    left_out = keep & any_missing.unsqueeze(-1)
    of_missing = log_probs.masked_fill(left_out, -torch.inf).logsumexp(-1).masked_fill(~any_missing, 0.0)
    terms = of_observed + (1 - x.sum(-1)) * of_missing
    return terms.masked_fill(~any_kept, 0.0).sum(-1)
