"""Shared functions of the Triton kernels: row addresses, stable elementary functions, launches."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.ops._scan_gemms import allows_tf32
from dmm_fast.triton import INTERPRETED
from dmm_fast.triton.tuning import cdiv as cdiv

# No libdevice functions are used, since the interpreter does not have them. On a GPU tl.log is accurate to
# the last digit, also near one and for subnormal numbers; division and tl.exp2 are accurate to two units in
# the last place; tl.exp is not used (see exp).
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2_HIGH = tl.constexpr(0.693359375)  # nine bits, so that its product with a small integer is exact
LN_2_LOW = tl.constexpr(-2.121944400546905827679e-4)


def next_power_of_2(size: int) -> int:
    """The smallest power of two that is at least ``size`` and a valid width for Triton."""
    return triton.next_power_of_2(max(size, 1))


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the current one, on which Triton launches kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def row_start(row, batch, stride_p, stride_b):  # type: ignore[no-untyped-def]
    """The offset of row ``p * batch + b`` of a ``[P, B, ...]`` tensor, in elements.

    The row index has 32 bits, since a division of 64 bits is slow.
    """
    p, b = row.to(tl.int32) // batch, row.to(tl.int32) % batch
    return p.to(tl.int64) * stride_p + b.to(tl.int64) * stride_b


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """e^x, accurate to a few units in the last place; subnormal results may be zero.

    ``tl.exp`` rounds x log2(e), which gives an error proportional to x: 40 units at -80. Here the integer
    part of x log2(e) becomes a power of two, and the remainder is at most a half.
    """
    bounded = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))  # beyond: 0, infinity; propagates NaN
    whole = tl.minimum(tl.floor(bounded * LOG2_E + 0.5), 127.0)
    rest = (bounded - whole * LN_2_HIGH) - whole * LN_2_LOW
    return tl.exp2(rest * LOG2_E) * tl.exp2(whole)


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x), accurate for arguments of either sign."""
    return tl.maximum(x, 0.0) + log_1_plus(exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x), without overflow of an exponential."""
    e = exp(-tl.abs(x))
    return tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """e^x - 1 without cancellation near zero."""
    s = tl.where(tl.abs(x) < 0.5, x, 0.0)
    # Taylor series with nine terms: for |x| < 0.5 the next term is below 1e-9 of the value.
    tail = 1.0 / 720 + s * (1.0 / 5040 + s * (1.0 / 40320 + s * (1.0 / 362880)))
    near = s * (1.0 + s * (1.0 / 2 + s * (1.0 / 6 + s * (1.0 / 24 + s * (1.0 / 120 + s * tail)))))
    return tl.where(tl.abs(x) < 0.5, near, exp(x) - 1.0)


@triton.jit
def log_1_plus(u):  # type: ignore[no-untyped-def]
    """log(1 + u) for 0 <= u <= 1, corrected for the rounding of 1 + u."""
    w = 1.0 + u
    d = w - 1.0
    return tl.where(d == 0.0, u, tl.log(w) * (u / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def log_softplus(x):  # type: ignore[no-untyped-def]
    """log(softplus(x)), computed as x - e^x / 2 where softplus itself would underflow."""
    far = x < -15.0
    return tl.where(far, x - 0.5 * exp(tl.minimum(x, 0.0)), tl.log(softplus(tl.where(far, 0.0, x))))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Hyperbolic tangent without cancellation near zero."""
    a = tl.abs(x)
    e = exp(-2.0 * a)
    small = a < 0.25
    s = tl.where(small, x * x, 0.0)
    # Taylor series with five terms: for |x| < 0.25 the next term is below 1e-8 of the value.
    near = x * (
        1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 - s * (1382.0 / 155925)))))
    )
    far = (1.0 - e) / (1.0 + e)
    return tl.where(small, near, tl.where(x < 0, -far, far))


@triton.jit
def exact_tanh(x):  # type: ignore[no-untyped-def]
    """:func:`tanh` with full accuracy near one, for computing 1 - tanh^2."""
    a = tl.abs(x)
    # The distance from one is divided, so that the error of the division is below the last digit of tanh.
    e = exp(-2.0 * a)
    far = 1.0 - 2.0 * e / (1.0 + e)
    return tl.where(a > 1.0, tl.where(x < 0, -far, far), tanh(x))


def input_precision(exact: str = "tf32x3") -> str:
    """The precision of ``tl.dot`` for float32: three tf32 products, or one if torch's setting allows tf32.

    Each factor is split into two tf32 numbers, whose sum has 22 of the 24 bits; sums are in float32. On an
    H100, with 2,580 products per sum, the error is half of that of cuBLAS in float32. For a layer of 64 rows
    by 32 outputs the tensor cores need half the instructions of "ieee", and read shared memory without bank
    conflicts, where "ieee" has eight per read if weights are stored by outputs. The sums of blocks of inputs
    are added outside of the tensor cores, which truncate: a sum of 600 products inside has an error twenty
    times as large. The interpreter computes exact products and does not accept every name.
    """
    if allows_tf32():
        return "tf32"
    return "ieee" if INTERPRETED else exact
