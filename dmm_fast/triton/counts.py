"""Log-densities of counts, their derivatives, and the required gamma functions for arguments from 1."""

import triton
import triton.language as tl

from dmm_fast.triton.common import exp, log_1_plus, log_softplus, sigmoid, softplus
from dmm_fast.triton.densities import HALF_LOG_2PI, TINY, log_softplus_slope

FAR = tl.constexpr(8.5)
"""Argument from which Stirling's series is used."""
SHIFT = tl.constexpr(4)
"""Number of steps by which the argument of digamma is shifted for its asymptotic series."""


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """Log(1 + x) for x >= 0."""
    return tl.where(x <= 1.0, log_1_plus(tl.minimum(x, 1.0)), tl.log(1.0 + x))


@triton.jit
def log_sigmoid(x):  # type: ignore[no-untyped-def]
    """Log(sigmoid(x)), without cancellation."""
    return tl.minimum(x, 0.0) - log_1_plus(exp(-tl.abs(x)))


@triton.jit
def stirling_tail(y):  # type: ignore[no-untyped-def]
    """The terms of Stirling's series from 1 / y on."""
    inverse = 1.0 / y
    return inverse * (1.0 / 12 - inverse * inverse * (1.0 / 360))


@triton.jit
def log_gamma(y):  # type: ignore[no-untyped-def]
    """Log G(y), by G(y) = p G(f) or G(f) / p with f in [1.5, 2.5], without cancellation near its zeros."""
    low, far = y < 1.5, y >= FAR
    f, p = tl.where(low, y + 1.0, y), tl.where(low, y, 1.0)
    for _ in tl.static_range(6):
        above = f > 2.5
        f = tl.where(above, f - 1.0, f)
        p = tl.where(above, p * f, p)
    t = f - 2.0
    # Log G(2 + t) / t: relative error below 3e-8.
    near = 2.88196556e-3 + t * (-1.31256238e-3 + t * 5.63159199e-4)
    near = 2.05812394e-2 + t * (-7.36642185e-3 + t * near)
    near = t * (4.22784343e-1 + t * (3.22467030e-1 + t * (-6.73532657e-2 + t * near)))
    logarithm = tl.log(tl.where(far, y, p))
    series = (y - 0.5) * (logarithm - 1.0) + (stirling_tail(y) + (HALF_LOG_2PI - 0.5))
    return tl.where(far, series, near + tl.where(low, -logarithm, logarithm))


@triton.jit
def log_gamma_ratio(y, x):  # type: ignore[no-untyped-def]
    """Log(G(y + x) / G(y)) for x >= 0, for large y not computed as a difference of large numbers."""
    sum = y + x
    tails = stirling_tail(sum) - stirling_tail(y)
    far = (y - 0.5) * log1p(x / y) + x * (tl.log(sum) - 1.0) + tails
    return tl.where(y >= FAR, far, log_gamma(sum) - log_gamma(y))


@triton.jit
def digamma_tail(y):  # type: ignore[no-untyped-def]
    """Log(y) - 1 / (2 y) - digamma(y) for a shifted y."""
    square = 1.0 / (y * y)
    return square * (1.0 / 12 - square * (1.0 / 120 - square * (1.0 / 252)))


@triton.jit
def digamma(y):  # type: ignore[no-untyped-def]
    """The derivative of log G."""
    shifted = y + SHIFT
    sum = 0.5 / shifted + digamma_tail(shifted)
    for k in tl.static_range(4):
        sum += 1.0 / (y + k)
    return tl.log(shifted) - sum


@triton.jit
def digamma_rise(y, x):  # type: ignore[no-untyped-def]
    """Digamma(y + x) - digamma(y) for x >= 0, a sum of positive terms."""
    shifted = y + SHIFT
    sum = digamma_tail(shifted) - digamma_tail(shifted + x) + 0.5 * x / (shifted * (shifted + x))
    for k in tl.static_range(4):
        sum += x / ((y + k) * (y + k + x))
    return log1p(x / shifted) + sum


@triton.jit
def poisson_log_density(x, pre_rate):  # type: ignore[no-untyped-def]
    """Log Poisson(x; softplus(pre_rate))."""
    return x * log_softplus(pre_rate) - softplus(pre_rate) - log_gamma(x + 1.0)


@triton.jit
def poisson_slope(x, pre_rate):  # type: ignore[no-untyped-def]
    """Its derivative with respect to pre_rate."""
    return (x - softplus(pre_rate)) * log_softplus_slope(pre_rate)


@triton.jit
def poisson_slope_by_value(x, pre_rate):  # type: ignore[no-untyped-def]
    """Its derivative with respect to x."""
    return log_softplus(pre_rate) - digamma(x + 1.0)


@triton.jit
def negative_binomial_log_density(x, pre_mean, pre_count):  # type: ignore[no-untyped-def]
    """Log NB(x), where the mean and the total count r are the softplus of the arguments.

    Terms in 1 / r, which may overflow, are avoided by G(r) = G(1 + r) / r, since log(r) is finite.
    """
    r, log_r = tl.maximum(softplus(pre_count), TINY), log_softplus(pre_count)
    log_odds = log_softplus(pre_mean) - log_r
    log_ratio = tl.where(x == 0.0, 0.0, tl.log(x + r) - log_r)
    of_gammas = log_gamma_ratio(1.0 + r, x) - log_gamma(x + 1.0) - log_ratio
    return of_gammas + r * log_sigmoid(-log_odds) + x * log_sigmoid(log_odds)


@triton.jit
def negative_binomial_slopes(x, pre_mean, pre_count):  # type: ignore[no-untyped-def]
    """Its derivatives with respect to pre_mean and pre_count."""
    r = tl.maximum(softplus(pre_count), TINY)
    log_odds = log_softplus(pre_mean) - log_softplus(pre_count)
    by_log_mean = (x - softplus(pre_mean)) * sigmoid(-log_odds)
    # r times the derivative of log G(x + r) - log G(r).
    of_gammas = r * digamma_rise(1.0 + r, x) + x / (x + r)
    by_log_count = of_gammas + r * log_sigmoid(-log_odds) - by_log_mean
    return by_log_mean * log_softplus_slope(pre_mean), by_log_count * log_softplus_slope(pre_count)


@triton.jit
def negative_binomial_slope_by_value(x, pre_mean, pre_count):  # type: ignore[no-untyped-def]
    """Its derivative with respect to x."""
    r = tl.maximum(softplus(pre_count), TINY)
    log_odds = log_softplus(pre_mean) - log_softplus(pre_count)
    return digamma_rise(x + 1.0, r) - 1.0 / (x + r) + log_sigmoid(log_odds)
