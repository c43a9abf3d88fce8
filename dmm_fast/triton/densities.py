"""Elementwise log-densities and their derivatives, from the pre-activation of the scale."""

import triton
import triton.language as tl

from dmm_fast.triton.common import exp, expm1, log_1_plus, log_softplus, sigmoid, softplus

HALF_LOG_2PI = tl.constexpr(0.9189385332046727)
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def log_softplus_slope(x):  # type: ignore[no-untyped-def]
    """The derivative of log(softplus(x)), sigmoid(x) / softplus(x), which tends to one where both vanish."""
    far = x < -15.0
    bounded = tl.where(far, 0.0, x)
    return tl.where(far, 1.0 - 0.5 * exp(tl.minimum(x, 0.0)), sigmoid(bounded) / softplus(bounded))


@triton.jit
def scaled(residual, pre_scale):  # type: ignore[no-untyped-def]
    """The residual divided by the scale, the bounded scale, and the part of the square that depends on it.

    The scale is bounded away from zero, so that a zero residual over an underflowed scale is 0 and not NaN;
    where the bound applies, nothing depends on the scale.
    """
    scale = softplus(pre_scale)
    bounded = tl.maximum(scale, TINY)
    standard = residual / bounded
    return standard, bounded, tl.where(scale < TINY, 0.0, standard * standard)


@triton.jit
def drawn_log_density(eps, pre_scale):  # type: ignore[no-untyped-def]
    """The log-density of a draw from N(., softplus(pre_scale)), computed from its noise."""
    return -0.5 * eps * eps - log_softplus(pre_scale) - HALF_LOG_2PI


@triton.jit
def normal_log_density(value, loc, pre_scale):  # type: ignore[no-untyped-def]
    """Log N(value; loc, softplus(pre_scale))."""
    standard, _, _ = scaled(value - loc, pre_scale)
    return drawn_log_density(standard, pre_scale)


@triton.jit
def normal_slopes(value, loc, pre_scale):  # type: ignore[no-untyped-def]
    """Its derivatives with respect to loc and pre_scale; that by the value is minus that by loc."""
    standard, bounded, square = scaled(value - loc, pre_scale)
    return standard / bounded, (square - 1.0) * log_softplus_slope(pre_scale)


@triton.jit
def normal_kl(loc, pre_scale, loc_p, pre_scale_p):  # type: ignore[no-untyped-def]
    """KL(N(loc, softplus(pre_scale)) || N(loc_p, softplus(pre_scale_p)))."""
    log_ratio = log_softplus(pre_scale) - log_softplus(pre_scale_p)
    standard, _, _ = scaled(loc - loc_p, pre_scale_p)
    return 0.5 * (expm1(2.0 * log_ratio) + standard * standard) - log_ratio


@triton.jit
def normal_kl_slopes(loc, pre_scale, loc_p, pre_scale_p):  # type: ignore[no-untyped-def]
    """Its derivatives with respect to loc, pre_scale and pre_scale_p; that by loc_p is minus that by loc."""
    excess = expm1(2.0 * (log_softplus(pre_scale) - log_softplus(pre_scale_p)))
    standard, bounded, square = scaled(loc - loc_p, pre_scale_p)
    return (
        standard / bounded,
        excess * log_softplus_slope(pre_scale),
        -(excess + square) * log_softplus_slope(pre_scale_p),
    )


@triton.jit
def bernoulli_log_density(x, logit):  # type: ignore[no-untyped-def]
    """Log Bernoulli(x; sigmoid(logit)), without cancellation for x of 0 or 1."""
    return (x * logit - tl.maximum(logit, 0.0)) - log_1_plus(exp(-tl.abs(logit)))


@triton.jit
def bernoulli_slope(x, logit):  # type: ignore[no-untyped-def]
    """Its derivative with respect to the logit, x - sigmoid(logit), again without cancellation."""
    q = sigmoid(-tl.abs(logit))
    return tl.where(logit > 0.0, (x - 1.0) + q, x - q)
