"""Elementwise heads of an emission: a density by name, with one or two outputs as parameters.

``HEAD`` is ``bernoulli`` or ``poisson``, which ignore the second output, ``normal`` or ``negative_binomial``.
"""

import triton
import triton.language as tl

from dmm_fast.triton import counts, densities


@triton.jit
def log_density(value, out, second, HEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """The log-density of the value."""
    if HEAD == "bernoulli":
        term = densities.bernoulli_log_density(value, out)
    elif HEAD == "poisson":
        term = counts.poisson_log_density(value, out)
    elif HEAD == "normal":
        term = densities.normal_log_density(value, out, second)
    else:
        term = counts.negative_binomial_log_density(value, out, second)
    return term


@triton.jit
def slopes(value, out, second, HEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Its derivatives with respect to the two outputs."""
    by_second = second
    if HEAD == "bernoulli":
        by_out = densities.bernoulli_slope(value, out)
    elif HEAD == "poisson":
        by_out = counts.poisson_slope(value, out)
    elif HEAD == "normal":
        by_out, by_second = densities.normal_slopes(value, out, second)
    else:
        by_out, by_second = counts.negative_binomial_slopes(value, out, second)
    return by_out, by_second


@triton.jit
def gradient_by_value(d, value, out, second, by_out, HEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """``d`` times the derivative with respect to the value; ``by_out`` is that of the first output."""
    if HEAD == "bernoulli":
        gradient = d * out
    elif HEAD == "poisson":
        gradient = d * counts.poisson_slope_by_value(value, out)
    elif HEAD == "normal":
        gradient = -by_out
    else:
        gradient = d * counts.negative_binomial_slope_by_value(value, out, second)
    return gradient
