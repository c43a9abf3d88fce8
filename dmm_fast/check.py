"""Argument checks shared by every layer: an error names the argument, what was expected, what was given."""

import inspect
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def fail(name: str, expected: str, got: str, exc: type[Exception] = ValueError) -> NoReturn:
    """Raise ``exc`` with the message ``<name>: expected <expected>, got <got>``."""
    raise exc(f"{name}: expected {expected}, got {got}")


def describe(value: object) -> str:
    """A short description of ``value``, e.g. ``float32 of shape (20, 1) on cpu``."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"[:80]
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided:
        kind += f" with layout {value.layout}"
    return f"{kind} of shape {tuple(value.shape)} on {value.device}"


def values_are_readable(tensor: Tensor) -> bool:
    """True if the values of ``tensor`` can be read without synchronising a device or breaking a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def is_capturing() -> bool:
    """True if this thread's stream is being captured into a CUDA graph, during which no value can be read."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def floating(name: str, value: object) -> Tensor:
    """Check that ``value`` is a floating-point tensor with strided layout."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        fail(name, "a floating-point tensor", describe(value), TypeError)
    return value


def like(name: str, tensor: Tensor, other: Tensor, other_name: str) -> None:
    """Check that ``tensor`` has the dtype, the device and the layout of ``other``."""
    if (
        not isinstance(tensor, Tensor)
        or tensor.dtype != other.dtype
        or tensor.device != other.device
        or tensor.layout != other.layout
    ):
        dtype = str(other.dtype).removeprefix("torch.")
        fail(name, f"{dtype} on {other.device} as {other_name} has", describe(tensor))


def shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Check the shape of ``tensor`` exactly."""
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != tuple(expected):
        fail(name, f"shape {tuple(expected)}", describe(tensor))


def trailing(name: str, tensor: Tensor, dims: Sequence[int], layout: str) -> None:
    """Check the last dimensions of ``tensor``; ``-1`` admits any size. ``layout`` appears in the message."""
    if not isinstance(tensor, Tensor):
        fail(name, "a tensor", describe(tensor), TypeError)
    if tensor.dim() < len(dims) or any(
        want not in (-1, have) for want, have in zip(dims, tensor.shape[-len(dims) :], strict=True)
    ):
        wanted = ", ".join("*" if d == -1 else str(d) for d in dims)
        fail(name, f"shape (..., {wanted}) as {layout}", describe(tensor))


def lengths(value: object, batch: int, T: int, device: torch.device, minimum: int = 0) -> Tensor:
    """Check ``lengths``: int64 of shape ``(batch,)`` on ``device`` with values in ``[minimum, T]``.

    Values are checked only if reading them needs no synchronisation, that is on a CPU.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.dtype != torch.int64
        or tuple(value.shape) != (batch,)
        or value.device != device
    ):
        fail("lengths", f"int64 of shape ({batch},) on {device}", describe(value))
    if batch > 0 and values_are_readable(value):
        low, high = extremes(value)
        if low < minimum or high > T:
            bad = low if low < minimum else high
            fail("lengths", f"values between {minimum} and T = {T}", str(bad))
    return value


# The copy made by own_lengths, its version counter when it was read, and its extremes.
_own_lengths: tuple[Any, int, tuple[int, int]] | None = None


def extremes(value: Tensor) -> tuple[int, int]:
    """The smallest and the largest of some integers; cached for the result of :func:`own_lengths`."""
    known = _own_lengths
    if known is not None and known[0]() is value and known[1] == value._version:
        return known[2]
    low, high = value.aminmax()
    return int(low), int(high)


def own_lengths(value: Tensor) -> Tensor:
    """A copy of ``value`` whose extremes are read once for all checks in a step.

    The original may share memory with a numpy array, into which a loader writes the next lengths. A copy
    has its own memory, and torch's version counter records every change to it.
    """
    global _own_lengths
    copy = value.clone()
    if not copy.is_inference():
        low, high = copy.aminmax()
        _own_lengths = weakref.ref(copy), copy._version, (int(low), int(high))
    return copy


def nonempty(name: str, tensor: Tensor, dims: dict[str, int]) -> None:
    """Check that no dimension named in ``dims`` (name to size) is empty."""
    empty = [dim for dim, size in dims.items() if size == 0]
    if empty:
        fail(name, f"at least one element in {', '.join(dims)}", f"{empty[0]} = 0")


def weights(
    name: str,
    values: object,
    kind_of: type[Any],
    words: Sequence[str],
    like_tensor: Tensor,
    like_name: str,
    sizes: dict[str, int],
) -> None:
    """Check a named tuple of weights against one word of size letters for each field.

    ``sizes`` gives the sizes of known letters; the sizes of others are added to it when they first appear,
    e.g. ``words=("RZ", "R")`` with ``sizes={"Z": 100}`` checks ``[R, 100]`` and ``[R]``.
    """
    kind(name, values, kind_of)
    for field, word, tensor in zip(kind_of._fields, words, values, strict=True):  # type: ignore[call-overload]
        like(f"{name}.{field}", tensor, like_tensor, like_name)
        if tensor.dim() == len(word):
            for letter, size in zip(word, tensor.shape, strict=True):
                sizes.setdefault(letter, size)
        shape(f"{name}.{field}", tensor, [sizes.get(letter, -1) for letter in word])


def observation_mask(
    name: str, mask: Tensor | None, shape: tuple[int, int, int], device: torch.device
) -> None:
    """Check a mask of observations ``[B, T, D]``: ``[B, T]`` or ``[B, T, D]``, bool or floating."""
    if mask is None:
        return
    mask_like(name, mask, shape, device)
    if values_are_readable(mask) and mask.dtype != torch.bool:
        strange = mask[(mask != 0) & (mask != 1)]
        if strange.numel():
            fail(name, "values 0 or 1", str(strange[0].item()))


def mask_like(name: str, mask: object, shape: tuple[int, int, int], device: torch.device) -> None:
    """Check the shape, device and layout of a mask of observations ``[B, T, D]``, but not its values."""
    B, T, D = shape
    if not isinstance(mask, Tensor) or tuple(mask.shape) not in ((B, T), (B, T, D)):
        fail(name, f"shape ({B}, {T}) or ({B}, {T}, {D})", describe(mask))
    if mask.device != device or mask.layout != torch.strided:
        fail(name, f"a dense tensor on {device}", describe(mask))


def broadcastable(name: str, tensor: Tensor, target: Sequence[int], layout: str) -> None:
    """Check that ``tensor`` expands to the shape ``target``."""
    fits = tensor.dim() <= len(target) and all(
        have in (1, want) for have, want in zip(reversed(tensor.shape), reversed(target), strict=False)
    )
    if not fits:
        fail(name, f"a shape that broadcasts to {tuple(target)} as {layout}", describe(tensor))


def sequences(name: str, tensor: Tensor) -> tuple[int, int, int]:
    """Check a floating ``[..., B, T, D]`` with at least one step, and return ``B, T, D``."""
    fits = (
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.dim() > 2
        and tensor.shape[-2] > 0
    )
    if not fits:  # repeat the checks one by one for the message
        floating(name, tensor)
        trailing(name, tensor, (-1, -1, -1), "[..., B, T, D]")
        nonempty(name, tensor, {"T": tensor.shape[-2]})
    B, T, D = tensor.shape[-3:]
    return B, T, D


def kind(name: str, value: object, *kinds: type) -> None:
    """Check that ``value`` is of one of the types ``kinds``."""
    if not isinstance(value, kinds):
        fail(name, " or ".join(k.__name__ for k in kinds), describe(value), TypeError)


def function(name: str, value: object) -> None:
    """Check that ``value`` is callable and not a class."""
    if not callable(value) or isinstance(value, type):
        fail(name, "a function", describe(value), TypeError)


def takes(
    name: str,
    function: Callable[..., Any],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    expected: str | None = None,
) -> None:
    """Check that ``function`` is callable with these arguments, as far as its signature is known.

    ``expected`` replaces the function's own arguments in the message.
    """
    if not callable(function):
        fail(name, "a function", describe(function), TypeError)
    own = function
    # Pre-hooks may change the arguments, so with them the arguments of forward tell nothing.
    if isinstance(function, nn.Module) and not function._forward_pre_hooks:
        own = function.forward
    try:
        # Not the signature of a decorated function, since a decorator may change it.
        signature = inspect.signature(own, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        called = f"{len(args)} by position and {sorted(kwargs)} by name"
        if expected is not None:
            fail(name, expected, type(function).__name__, TypeError)
        fail(name, f"arguments that fit {signature}", f"{called}: {error}", TypeError)


def elements(name: str, value: Any, expected: str) -> list[Any]:
    """Check that ``value`` is an iterable other than a string or a tensor, and return its elements."""
    if isinstance(value, str | bytes | Tensor):
        fail(name, expected, describe(value), TypeError)
    try:
        iterator = iter(value)
    except TypeError:
        fail(name, expected, describe(value), TypeError)
    return list(iterator)


def integer(name: str, value: object, expected: str = "an int") -> int:
    """Check that ``value`` is an integer of Python or numpy, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        fail(name, expected, describe(value), TypeError)
    return int(value)


def leading(name: str, tensor: Tensor, lead: Sequence[int], event_dims: int, like_name: str) -> None:
    """Check that the dimensions before the last ``event_dims`` broadcast with ``lead``."""
    have = tensor.shape[: tensor.dim() - event_dims]
    pairs = zip(reversed(have), reversed(lead), strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        fail(name, f"leading dimensions that broadcast with {tuple(lead)} of {like_name}", describe(tensor))


def vector(name: str, value: object) -> None:
    """Check that ``value`` is a one-dimensional tensor."""
    if not isinstance(value, Tensor) or value.dim() != 1:
        fail(name, "int64 of shape (B,)", describe(value))


LARGEST_INT = 2**63 - 1
"""The largest int64."""
LARGEST_SIZE = 2**31 - 1
"""The largest size of a dimension."""


def int_between(name: str, value: object, least: int, most: int = LARGEST_INT) -> int:
    """Check that ``value`` is an integer of Python or numpy, not a bool, from ``least`` to ``most``."""
    if most < LARGEST_SIZE:
        expected = f"an int from {least} to {most}"
    else:
        expected = "a positive int" if least == 1 else f"an int from {least}"
    whole = integer(name, value, expected)
    if whole > max(most, LARGEST_SIZE):
        fail(name, expected, "one that is too large")
    if not least <= whole <= most:
        fail(name, expected, str(whole) if whole >= -LARGEST_INT else "one that is too small")
    return whole


def size(name: str, value: object) -> int:
    """Check that ``value`` is a positive integer and a valid size of a dimension."""
    if type(value) is int and 1 <= value <= LARGEST_SIZE:
        return value
    return int_between(name, value, 1, LARGEST_SIZE)


def sizes(name: str, value: object) -> torch.Size:
    """Check a sequence of sizes, such as a sample shape; it may be empty, and sizes may be 0."""
    if isinstance(value, tuple | list) and all(type(n) is int and 0 <= n <= LARGEST_SIZE for n in value):
        return torch.Size(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        fail(name, "a sequence of sizes", describe(value), TypeError)
    if torch._C._get_tracing_state():  # while tracing, sizes are tensors
        return torch.Size(value)
    return torch.Size([int_between(f"{name}[{i}]", each, 0, LARGEST_SIZE) for i, each in enumerate(value)])


def number(name: str, value: Any, expected: str = "a finite number") -> float:
    """Check that ``value`` is a finite number, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(name, expected, describe(value), TypeError)
    largest: Any = sys.float_info.max
    if not -largest <= value <= largest:
        fail(name, expected, describe(value))
    return float(value)


def probability(name: str, value: object) -> float:
    """Check that ``value`` is a number between 0 and 1."""
    expected = "a probability between 0 and 1"
    chance = number(name, value, expected)
    if not 0.0 <= chance <= 1.0:
        fail(name, expected, describe(value))
    return chance


def path(name: str, value: object) -> Path:
    """Check that ``value`` is a valid file path."""
    if not isinstance(value, str | os.PathLike):
        fail(name, "a str or a path", describe(value), TypeError)
    text = os.fspath(value)
    if not isinstance(text, str):
        fail(name, "a str or a path of str", describe(text), TypeError)
    if "\0" in text:
        fail(name, "a path without null characters", repr(text)[:80])
    return Path(text)


def dense(name: str, value: object) -> Tensor:
    """Check that ``value`` is a strided tensor that is not on the meta device."""
    if not isinstance(value, Tensor):
        fail(name, "Tensor", describe(value), TypeError)
    if value.layout != torch.strided or value.device.type == "meta":
        got = f"a tensor of layout {value.layout} on {value.device}"
        fail(name, "a dense tensor with values", got, TypeError)
    return value


def device(name: str, value: Any) -> torch.device:
    """Check that ``value`` is a device or the name of one, and that a CUDA device exists on this machine."""
    kind(name, value, torch.device, str, int)
    if isinstance(value, bool):
        fail(name, "a device", describe(value), TypeError)
    try:
        found = torch.device(value)
    except (RuntimeError, ValueError):
        fail(name, "a device, such as 'cpu' or 'cuda:0'", describe(value))
    if found.type == "cuda" and not (
        torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count()
    ):
        fail(name, "a CUDA device of this machine", str(found))
    return found


def permutation(name: str, value: object, size: int, device: torch.device) -> Tensor:
    """Check a permutation, int64 of shape ``(size,)``; its values only if they are on a CPU."""
    order = ints_between(name, value, size, 0, size - 1)
    if order.device != device:
        fail(name, f"a tensor on {device}", describe(order))
    if values_are_readable(order) and len(set(order.tolist())) < size:
        fail(name, "each number once", str(order.tolist()))
    return order


def ints_between(name: str, value: object, size: int | None, least: int, most: int) -> Tensor:
    """Check an int64 vector of ``size`` elements (None: at least one); its values only if on a CPU."""
    if not isinstance(value, Tensor):
        fail(name, "Tensor", describe(value), TypeError)
    fits = value.numel() == size if size is not None else value.numel() > 0
    if not fits or value.layout != torch.strided or value.dtype != torch.int64 or value.dim() != 1:
        fail(name, f"int64 of shape {'(B,), B >= 1' if size is None else (size,)}", describe(value))
    if values_are_readable(value) and value.numel() > 0:
        low, high = (int(v) for v in value.aminmax())
        if low < least or high > most:
            fail(name, f"values between {least} and {most}", str(low if low < least else high))
    return value
