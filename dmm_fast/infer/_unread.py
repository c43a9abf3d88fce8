"""Scalars that stay on the device during a step, as CUDA graph capture requires."""

import numbers
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dmm_fast import check


class CaptureError(RuntimeError):
    """A step cannot be captured as a CUDA graph; the message gives the reason or the likely one."""


class Unread(numbers.Number):
    """A float64 scalar on its device that supports the arithmetic that Pyro does with Python numbers.

    Pyro treats it as any other number; it is equal to itself, hence not NaN.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().to(torch.float64)

    def __add__(self, other: Any) -> "Unread":
        # Pyro's sums start from zero.
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
        check.fail("step", "no decision that depends on a value on the device", "one", CaptureError)

    def __float__(self) -> NoReturn:
        check.fail("step", "no conversion of a value on the device to a Python number", "one", CaptureError)


def _value(number: Any) -> Any:
    return number.value if isinstance(number, Unread) else number


class NumbersStay(TorchFunctionMode):
    """Makes ``item()`` of a floating-point tensor return a scalar that stays on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            return Unread(args[0])
        return func(*args, **(kwargs or {}))


def loss_tensor(loss: Any) -> Tensor:
    """The loss of a step, a tensor on the device or a number, as a float64 tensor without gradient."""
    if isinstance(loss, tuple):
        check.fail("loss", "one number", f"{len(loss)}", TypeError)
    if isinstance(loss, Unread):
        return loss.value
    if isinstance(loss, Tensor):
        return loss.detach().to(torch.float64)
    return torch.tensor(loss, dtype=torch.float64)
