"""Ops under ``torch.autocast``: they compute in float32, as torch's losses and norms do."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

_Given = TypeVar("_Given")
_R = TypeVar("_R")

_NARROW = (torch.bfloat16, torch.float16)
# torch.compile of torch 2.10 cannot trace the question whether a kind of device has autocast.
_WITH_AUTOCAST = ("cpu", "cuda")


def is_on() -> bool:
    """True if autocast is on for any device type; a single cheap check for each call of an op."""
    return torch._C._is_any_autocast_enabled()


def in_float32(function: Callable[[_Given], _R], given: _Given) -> _R:
    """``function(given)`` without autocast and with half precision cast to float32, if autocast is on."""
    device = device_where_on(given)
    if device is None:
        return function(given)
    with torch.autocast(device, enabled=False):
        return function(tree_map_only(Tensor, _widened, given))


def device_where_on(given: Any) -> str | None:
    """The device type of the tensors within ``given`` if autocast is on for it, else None."""
    device = next((leaf.device.type for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor)), None)
    if device is None or not (device in _WITH_AUTOCAST or torch.amp.is_autocast_available(device)):
        return None
    return device if torch.is_autocast_enabled(device) else None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _NARROW else tensor
