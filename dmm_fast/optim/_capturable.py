"""Learning rates and step counts as tensors, which a CUDA graph can change.

In a group with ``capturable``, ``lr`` is a float64 tensor of no dimension on the device of the parameters,
and ``step`` of each parameter is an int64 tensor.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from dmm_fast.check import fail, is_capturing


def is_capturable(group: dict[str, Any]) -> bool:
    """True if a parameter group keeps its learning rate and step counts as tensors."""
    return bool(group.get("capturable", False))


def put_rate_on_device(group: dict[str, Any]) -> None:
    """Convert the learning rate of a capturable group to a tensor if it is a number."""
    if is_capturable(group) and group["params"] and not isinstance(group["lr"], Tensor):
        _refuse_capture("lr")
        group["lr"] = torch.full((), group["lr"], dtype=torch.float64, device=group["params"][0].device)


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Set the learning rate of a parameter group, in place if it is a tensor, which a graph may read."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def put_count_on_device(param: Tensor, state: dict[str, Any]) -> None:
    """Convert the step count of a capturable parameter to a tensor if it is a number."""
    if not isinstance(state["step"], Tensor):
        _refuse_capture("params")
        state["step"] = torch.full((), state["step"], dtype=torch.int64, device=param.device)


def _refuse_capture(name: str) -> None:
    """Refuse to initialise a tensor in a capture, since every replay would initialise it again."""
    if is_capturing():
        fail(name, "a step before the capture of a CUDA graph", "the first one within it", RuntimeError)


def as_kept(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A state with numbers in place of a capturable optimizer's tensors, and ``capturable`` of ``groups``."""
    saved = [with_number(group, "lr", torch.float64) for group in state_dict["param_groups"]]
    for group, own in zip(saved, groups, strict=False):
        group.pop("capturable", None)
        if is_capturable(own):
            group["capturable"] = True
    states = {key: with_number(state, "step", torch.int64) for key, state in state_dict["state"].items()}
    return {**state_dict, "state": states, "param_groups": saved}


def with_number(given: dict[str, Any], name: str, dtype: torch.dtype) -> dict[str, Any]:
    """A copy of ``given`` with a number in place of the tensor ``name``."""
    value = given.get(name)
    return {**given, name: value.item()} if is_number(value, dtype) else dict(given)


def is_number(value: object, dtype: torch.dtype) -> TypeGuard[Tensor]:
    """True if ``value`` is a tensor in which a capturable optimizer keeps a number."""
    return isinstance(value, Tensor) and value.dtype == dtype and value.dim() == 0 and not value.is_meta
