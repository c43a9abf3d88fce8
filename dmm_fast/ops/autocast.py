"""Ops under ``torch.autocast``: they compute in float32, as torch's losses and norms do."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

_P = ParamSpec("_P")
_R = TypeVar("_R")

_NARROW = (torch.bfloat16, torch.float16)


def is_on() -> bool:
    """Whether autocast is on for any kind of device: one cheap question for each call of an op."""
    return torch._C._is_any_autocast_enabled()


def in_float32(op: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have ``op`` take half precision as float32 and compute as without autocast, where autocast is on."""

    @wraps(op)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = device_where_on((args, kwargs)) if is_on() else None
        if device is None:
            return op(*args, **kwargs)
        wide_args, wide_kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        with torch.autocast(device, enabled=False):
            return op(*wide_args, **wide_kwargs)

    return call


def device_where_on(given: Any) -> str | None:
    """The kind of device that the tensors within ``given`` are on, if autocast is on for it."""
    device = next((leaf.device.type for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor)), None)
    if device is None or not torch.amp.is_autocast_available(device):
        return None
    return device if torch.is_autocast_enabled(device) else None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _NARROW else tensor
