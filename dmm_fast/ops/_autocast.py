"""Ops under ``torch.autocast``: they compute in float32, as torch's losses and norms do."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

_Given = TypeVar("_Given")
_R = TypeVar("_R")

_NARROW = (torch.bfloat16, torch.float16)


def is_on() -> bool:
    """Whether autocast is on for any kind of device: one cheap question for each call of an op."""
    return torch._C._is_any_autocast_enabled()


def in_float32(function: Callable[[_Given], _R], given: _Given) -> _R:
    """``function(given)`` with half precision taken as float32 and without autocast, where that is on."""
    device = device_where_on(given)
    if device is None:
        return function(given)
    with torch.autocast(device, enabled=False):
        return function(tree_map_only(Tensor, _widened, given))


def device_where_on(given: Any) -> str | None:
    """The kind of device that the tensors within ``given`` are on, if autocast is on for it."""
    device = next((leaf.device.type for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor)), None)
    if device is None or not torch.amp.is_autocast_available(device):
        return None
    return device if torch.is_autocast_enabled(device) else None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _NARROW else tensor
