"""What the Triton kernels share: addressing of rows, stable elementary functions, launching."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.products import allows_tf32

# No libdevice function is used: the interpreter has none of them.


def next_power_of_2(size: int) -> int:
    """The least power of two that holds ``size``, and is a width Triton takes."""
    return triton.next_power_of_2(max(size, 1))


def cdiv(size: int, block: int) -> int:
    """Blocks that cover ``size``."""
    return -(-size // block)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch where the tensor is, not where the current device happens to be."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def row_start(row, batch, stride_p, stride_b):  # type: ignore[no-untyped-def]
    """Where row ``p * batch + b`` of a ``[P, B, ...]`` tensor begins, in elements."""
    row = row.to(tl.int64)
    return (row // batch) * stride_p + (row % batch) * stride_b


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + e^x), exact on both sides."""
    return tl.maximum(x, 0.0) + log_1_plus(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x), where no exponential overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """e^x - 1, without cancellation near zero."""
    s = tl.where(tl.abs(x) < 0.5, x, 0.0)
    # Taylor, nine terms: below 0.5 the next is under 1e-9 of the value.
    tail = 1.0 + s / 6.0 * (1.0 + s / 7.0 * (1.0 + s / 8.0 * (1.0 + s / 9.0)))
    near = s * (1.0 + s / 2.0 * (1.0 + s / 3.0 * (1.0 + s / 4.0 * (1.0 + s / 5.0 * tail))))
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0)


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
    return tl.where(far, x - 0.5 * tl.exp(tl.minimum(x, 0.0)), tl.log(softplus(tl.where(far, 0.0, x))))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh, without cancellation near zero."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    small = a < 0.25
    s = tl.where(small, x * x, 0.0)
    # Taylor, five terms: below 0.25 the next is under 1e-8 of the value.
    near = x * (
        1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 - s * 1382.0 / 155925))))
    )
    far = (1.0 - e) / (1.0 + e)
    return tl.where(small, near, tl.where(x < 0, -far, far))


def input_precision() -> str:
    """How ``tl.dot`` multiplies float32: IEEE unless torch's own setting for matrix products allows tf32."""
    return "tf32" if allows_tf32() else "ieee"
