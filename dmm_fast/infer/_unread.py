"""Numbers of a step that stay on the device, as a CUDA graph needs it."""

import numbers
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dmm_fast import check


class CaptureError(RuntimeError):
    """A step cannot be captured as a CUDA graph; the message says why, or what is likely."""


class Unread(numbers.Number):
    """A float64 where it was computed, for sums that Pyro does with Python's numbers.

    To Pyro it is a number like any other, equal to itself, so not NaN.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().to(torch.float64)

    def __add__(self, other: Any) -> "Unread":
        # Pyro's sums begin with a zero.
        return self if isinstance(other, int | float) and other == 0 else Unread(self.value + _value(other))

    def __mul__(self, other: Any) -> "Unread":
        return Unread(self.value * _value(other))

    def __truediv__(self, other: Any) -> "Unread":
        return self if isinstance(other, int | float) and other == 1 else Unread(self.value / _value(other))

    def __neg__(self) -> "Unread":
        return Unread(-self.value)

    def __sub__(self, other: Any) -> "Unread":
        return Unread(self.value - _value(other))

    def __rsub__(self, other: Any) -> "Unread":
        return Unread(_value(other) - self.value)

    __radd__, __rmul__, __hash__ = __add__, __mul__, object.__hash__

    def __bool__(self) -> NoReturn:
        check.fail("step", "no decision by a number on the device", "one", CaptureError)

    def __float__(self) -> NoReturn:
        check.fail("step", "no number of the device on the host", "one", CaptureError)


def _value(number: Any) -> Any:
    return number.value if isinstance(number, Unread) else number


class NumbersStay(TorchFunctionMode):
    """``item()`` of a floating-point tensor waits for nothing: the number stays on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            return Unread(args[0])
        return func(*args, **(kwargs or {}))


def loss_tensor(loss: Any) -> Tensor:
    """The loss of a step, a tensor of the device or a number, as a float64 tensor without gradient."""
    if isinstance(loss, tuple):
        check.fail("loss", "one number", f"{len(loss)}", TypeError)
    if isinstance(loss, Unread):
        return loss.value
    if isinstance(loss, Tensor):
        return loss.detach().to(torch.float64)
    return torch.tensor(loss, dtype=torch.float64)
