"""log p(x_{1:T} | z_{1:T}): emitter and log-density, summed over what is observed."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import EmitterWeights, GaussianEmitterWeights


def emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log Bernoulli(x_t; logits = emitter(z_t)), in nats.

    Args:
        x: ``[..., B, T, D]``; broadcasts with ``z`` on the particle dimensions, so that ``[B, T, D]`` is for
            all particles. May hold NaN where not observed.
        z: ``[..., B, T, Z]``.
        weights: of the Bernoulli emitter.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1: what is observed. None: all of it.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 3; ``Emitter`` in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("emission_log_prob", x, z, weights, lengths, mask)
    return result


def gaussian_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log N(x_t; loc(z_t), scale(z_t)), in nats.

    Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("gaussian_emission_log_prob", x, z, weights, lengths, mask)
    return result


def poisson_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log Poisson(x_t; rate = softplus(emitter(z_t))), in nats.

    ``x`` holds counts. Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("poisson_emission_log_prob", x, z, weights, lengths, mask)
    return result


def negative_binomial_emission_log_prob(
    x: Tensor, z: Tensor, weights: GaussianEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log NB(x_t; mean(z_t), total_count(z_t)), in nats.

    ``log NB(x; m, r) = log(G(x + r) / (G(r) x!)) + r log(r / (r + m)) + x log(m / (r + m))``, where ``G`` is
    the gamma function: counts of mean ``m`` and variance ``m + m^2 / r``. The mean is the softplus of the
    emitter's first head, the total count that of its second.

    ``x`` holds counts. Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("negative_binomial_emission_log_prob", x, z, weights, lengths, mask)
    return result


def categorical_emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over valid t of log Categorical(x_t; logits = emitter(z_t)), in nats.

    ``x_t`` is one-hot. What is masked out is summed over: where the one is among the entries that are
    observed, the term is the log-probability of its category, and where they are all zero, that of any
    category which is masked out. A step of which nothing is observed has no term.

    Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    result: Tensor = call("categorical_emission_log_prob", x, z, weights, lengths, mask)
    return result
