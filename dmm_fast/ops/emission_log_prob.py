"""log p(x_{1:T} | z_{1:T}): emitter and log-density, summed over observed entries."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import EmitterWeights, GaussianEmitterWeights


def emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log Bernoulli(x_t; logits = emitter(z_t)), in nats.

    Args:
        x: ``[..., B, T, D]``; broadcasts with ``z`` on the particle dimensions, so that ``[B, T, D]`` is
            shared by all particles. Unobserved entries may be NaN.
        z: ``[..., B, T, Z]``.
        weights: weights of the Bernoulli emitter.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1, 1 at observed entries. None: all observed.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, section 3; ``Emitter`` in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("emission_log_prob", x, z, weights, lengths, mask)
    return result


def gaussian_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log N(x_t; loc(z_t), scale(z_t)), in nats.

    Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("gaussian_emission_log_prob", x, z, weights, lengths, mask)
    return result


def poisson_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log Poisson(x_t; rate = softplus(emitter(z_t))), in nats.

    ``x`` holds counts. Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("poisson_emission_log_prob", x, z, weights, lengths, mask)
    return result


def negative_binomial_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log NB(x_t; mean(z_t), total_count(z_t)), in nats.

    ``log NB(x; m, r) = log(G(x + r) / (G(r) x!)) + r log(r / (r + m)) + x log(m / (r + m))``, where ``G`` is
    the gamma function: counts with mean ``m`` and variance ``m + m^2 / r``. The mean is the softplus of the
    emitter's first head, the total count that of the second.

    ``x`` holds counts. Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("negative_binomial_emission_log_prob", x, z, weights, lengths, mask)
    return result


def categorical_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over valid t of log Categorical(x_t; logits = emitter(z_t)), in nats.

    ``x_t`` is one-hot. Missing entries are summed over: if the one is observed, the term is the
    log-probability of its category; if all observed entries are zero, it is that of the event that the
    category is one of the missing ones. A step without observed entries has no term.

    Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("categorical_emission_log_prob", x, z, weights, lengths, mask)
    return result
