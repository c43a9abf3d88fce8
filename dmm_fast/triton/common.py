"""Functions that the Triton kernels share: addressing of rows, stable elementary functions, launching."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.ops._scan_gemms import allows_tf32
from dmm_fast.triton import INTERPRETED
from dmm_fast.triton.tuning import cdiv as cdiv

# No libdevice function is used: the interpreter has none of them. On a GPU tl.log is exact to the last
# digit, also near one and for subnormal numbers; a division and tl.exp2 are exact to two units in the last
# place; tl.exp is not used (see exp).
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2_HIGH = tl.constexpr(0.693359375)  # nine bits: its product with a small whole number is exact
LN_2_LOW = tl.constexpr(-2.121944400546905827679e-4)


def next_power_of_2(size: int) -> int:
    """The least power of two that holds ``size``, and is a width Triton takes."""
    return triton.next_power_of_2(max(size, 1))


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch where the tensor is, not where the current device happens to be."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def row_start(row, batch, stride_p, stride_b):  # type: ignore[no-untyped-def]
    """The place where row ``p * batch + b`` of a ``[P, B, ...]`` tensor begins, in elements.

    Of a row's number 32 bits are enough, and a division of 64 is slow.
    """
    p, b = row.to(tl.int32) // batch, row.to(tl.int32) % batch
    return p.to(tl.int64) * stride_p + b.to(tl.int64) * stride_b


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """e^x to a few units in the last place; what would be subnormal may be zero.

    ``tl.exp`` rounds x log2(e) and is off by that times x: at -80 by 40 units. Here the whole part of it goes
    into a power of two, and the rest is at most a half.
    """
    bounded = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))  # gives 0 and infinity; NaN stays
    whole = tl.minimum(tl.floor(bounded * LOG2_E + 0.5), 127.0)
    rest = (bounded - whole * LN_2_HIGH) - whole * LN_2_LOW
    return tl.exp2(rest * LOG2_E) * tl.exp2(whole)


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x), exact on both sides."""
    return tl.maximum(x, 0.0) + log_1_plus(exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x), where no exponential overflows."""
    e = exp(-tl.abs(x))
    return tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """e^x - 1, without cancellation near zero."""
    s = tl.where(tl.abs(x) < 0.5, x, 0.0)
    # Taylor, nine terms: below 0.5 the next is under 1e-9 of the value.
    tail = 1.0 / 720 + s * (1.0 / 5040 + s * (1.0 / 40320 + s * (1.0 / 362880)))
    near = s * (1.0 + s * (1.0 / 2 + s * (1.0 / 6 + s * (1.0 / 24 + s * (1.0 / 120 + s * tail)))))
    return tl.where(tl.abs(x) < 0.5, near, exp(x) - 1.0)


@triton.jit
def log_1_plus(u):  # type: ignore[no-untyped-def]
    """log(1 + u) for 0 <= u <= 1 to the last digits: what rounding 1 + u loses is put back."""
    w = 1.0 + u
    d = w - 1.0
    return tl.where(d == 0.0, u, tl.log(w) * (u / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def log_softplus(x):  # type: ignore[no-untyped-def]
    """log(softplus(x)), which is x - e^x / 2 where softplus itself would underflow."""
    far = x < -15.0
    return tl.where(far, x - 0.5 * exp(tl.minimum(x, 0.0)), tl.log(softplus(tl.where(far, 0.0, x))))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh, without cancellation near zero."""
    a = tl.abs(x)
    e = exp(-2.0 * a)
    small = a < 0.25
    s = tl.where(small, x * x, 0.0)
    # Taylor, five terms: below 0.25 the next is under 1e-8 of the value.
    near = x * (
        1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 - s * (1382.0 / 155925)))))
    )
    far = (1.0 - e) / (1.0 + e)
    return tl.where(small, near, tl.where(x < 0, -far, far))


@triton.jit
def exact_tanh(x):  # type: ignore[no-untyped-def]
    """:func:`tanh`, as exact near one as elsewhere: for what 1 - tanh^2 is made of."""
    a = tl.abs(x)
    # Its distance from one is what is divided: the error of that is below the last digit.
    e = exp(-2.0 * a)
    far = 1.0 - 2.0 * e / (1.0 + e)
    return tl.where(a > 1.0, tl.where(x < 0, -far, far), tanh(x))


def input_precision(exact: str = "tf32x3") -> str:
    """The way ``tl.dot`` multiplies float32: by three tf32 products unless torch's setting allows a single.

    Each factor is split into two tf32 numbers, whose sum has 22 of its 24 bits; sums are in float32. On an
    H100, over 2,580 products a sum, the result errs half of what cuBLAS's float32 does. For a layer of 64
    rows by 32 outputs the tensor cores need half of the instructions that "ieee" does, and read shared
    memory without conflicts, of which "ieee" has eight a read where weights are stored by outputs. Sums of a
    block of inputs are added outside of the tensor cores, which cut off what does not fit: a sum of 600
    products made inside is off by twenty times as much. The interpreter, whose products are exact, does not
    know every name.
    """
    if allows_tf32():
        return "tf32"
    return "ieee" if INTERPRETED else exact
