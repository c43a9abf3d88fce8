"""The numbers of an optimizer that a CUDA graph can change: learning rates and step counts as tensors.

A group with ``capturable`` has ``lr`` as float64 of no dimension on its parameters' device, and each of its
parameters ``step`` as int64.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from dmm_fast.check import fail, is_capturing


def is_capturable(group: dict[str, Any]) -> bool:
    """Whether a parameter group keeps its numbers as tensors."""
    return bool(group.get("capturable", False))


def put_rate_on_device(group: dict[str, Any]) -> None:
    """Make the learning rate of a capturable group a tensor, if it is none."""
    if is_capturable(group) and group["params"] and not isinstance(group["lr"], Tensor):
        _refuse_capture("lr")
        group["lr"] = torch.full((), group["lr"], dtype=torch.float64, device=group["params"][0].device)


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Give a parameter group another learning rate, in the tensor that a graph reads if it has one."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def put_count_on_device(param: Tensor, state: dict[str, Any]) -> None:
    """Make the step count of a capturable parameter a tensor, if it is none."""
    if not isinstance(state["step"], Tensor):
        _refuse_capture("params")
        state["step"] = torch.full((), state["step"], dtype=torch.int64, device=param.device)


def _refuse_capture(name: str) -> None:
    """A graph that held the first value of a tensor would begin with it in each replay."""
    if is_capturing():
        fail(name, "a step before the capture of a CUDA graph", "the first one within it", RuntimeError)


def as_kept(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """A state with numbers where a capturable optimizer has tensors, and capturable as ``groups`` are."""
    saved = [with_number(group, "lr", torch.float64) for group in state_dict["param_groups"]]
    for group, own in zip(saved, groups, strict=False):
        group.pop("capturable", None)
        if is_capturable(own):
            group["capturable"] = True
    states = {key: with_number(state, "step", torch.int64) for key, state in state_dict["state"].items()}
    return {**state_dict, "state": states, "param_groups": saved}


def with_number(given: dict[str, Any], name: str, dtype: torch.dtype) -> dict[str, Any]:
    """A copy that has a number where ``given`` has it as a tensor."""
    value = given.get(name)
    return {**given, name: value.item()} if is_number(value, dtype) else dict(given)


def is_number(value: object, dtype: torch.dtype) -> TypeGuard[Tensor]:
    """Whether ``value`` is a tensor as a capturable optimizer keeps a number."""
    return isinstance(value, Tensor) and value.dtype == dtype and value.dim() == 0 and not value.is_meta
