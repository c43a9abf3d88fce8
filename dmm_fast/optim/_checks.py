"""Checks of the parameters, hyperparameters and states given to :class:`dmm_fast.optim.ClippedAdam`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.check import describe, fail
from dmm_fast.ops._ranges import ABOVE_ZERO, FROM_ZERO, RANGES, number
from dmm_fast.optim._capturable import is_capturable

MOMENTS = ("exp_avg", "exp_avg_sq")

_PARAMS = "an iterable of parameters"


def check_params(value: object) -> list[Any]:
    """The parameters or parameter groups given to a constructor, as a list.

    Raises:
        TypeError: ``value`` is not an iterable of parameters or groups.
        ValueError: ``value`` is empty.
    """
    expected = f"{_PARAMS} or of dicts"
    if isinstance(value, Mapping):
        fail("params", expected, describe(value), TypeError)
    given = check.elements("params", value, expected)
    if not given:
        fail("params", "at least one parameter", "none")
    return given


def check_new_group(group: object, defaults: dict[str, Any], others: list[dict[str, Any]]) -> list[Any]:
    """Check a parameter group that is to be added to ``others``, and return its parameters.

    Raises:
        TypeError: the group is not a dict, contains other objects than parameters, or a hyperparameter is not
            a number.
        ValueError: a parameter is not a leaf or is in another group, or a hyperparameter is out of range.
    """
    if not isinstance(group, dict):
        fail("param_group", "a dict", describe(group), TypeError)
    if "params" not in group:
        fail("param_group", "an entry 'params'", f"{list(group)}"[:80])
    check_group({**defaults, **group})
    value = group["params"]
    if isinstance(value, Tensor):
        value = [value]
    elif isinstance(value, set | frozenset | Mapping):
        fail("params", f"{_PARAMS} in an order", type(value).__name__, TypeError)
    params = check.elements("params", value, _PARAMS)
    taken = {id(param) for other in others for param in other["params"]}
    for param in params:
        # torch accepts the pairs of named_parameters().
        is_named = isinstance(param, tuple) and len(param) == 2 and isinstance(param[0], str)
        tensor = param[1] if is_named else param
        if not isinstance(tensor, Tensor):
            fail("params", _PARAMS, f"one that is {describe(tensor)}", TypeError)
        if not (tensor.is_leaf or tensor.retains_grad):
            fail("params", "leaf tensors", "one that is computed from others")
        if id(tensor) in taken:
            fail("params", "each parameter in one group", "one that is in another group already")
    named = {isinstance(param, tuple) for param in params} | {"param_names" in other for other in others}
    if len(named) > 1:
        fail("params", "names for all parameters or for none", "some with names")
    return params


def check_group(group: dict[str, Any]) -> None:
    """Check the hyperparameters of a parameter group.

    Raises:
        TypeError: a hyperparameter is missing or has the wrong type.
        ValueError: a hyperparameter is out of range.
    """
    if not isinstance(group.get("capturable", False), bool):
        fail("capturable", "a bool", describe(group["capturable"]), TypeError)
    for name in ("eps", "weight_decay", "clip_norm"):
        number(name, group.get(name), RANGES[name])
    number("lr", group.get("lr"), FROM_ZERO)
    number("lrd", group.get("lrd"), ABOVE_ZERO)
    betas = group.get("betas")
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        fail("betas", "two numbers", describe(betas), TypeError)
    for index, beta in enumerate(betas):
        number(f"betas[{index}]", beta, RANGES["beta1"])
    if not isinstance(group.get("centered_variance"), bool):
        fail("centered_variance", "a bool", describe(group.get("centered_variance")), TypeError)


def check_gradient(param: Tensor, group: dict[str, Any]) -> None:
    """Check that the gradient of ``param`` is None, or dense and real, and on the device of its group's rate.

    Raises:
        TypeError: the gradient is sparse, or the parameter is complex.
        ValueError: the parameter of a capturable group is on another device than the learning rate.
    """
    if param.grad is None:
        return
    if param.grad.layout != torch.strided:
        fail("grad", "a dense gradient", str(param.grad.layout), TypeError)
    if not param.is_floating_point():
        fail("params", "floating-point parameters", describe(param), TypeError)
    if is_capturable(group) and param.device != group["lr"].device:
        fail("params", f"one device for a capturable group, {group['lr'].device}", describe(param))


def check_structure(state_dict: object, groups: list[dict[str, Any]]) -> None:
    """Check that a state has the same number and sizes of groups as ``groups``, and dicts as entries.

    Raises:
        TypeError: a part of the state is not a dict, or not a list where a list is required.
        ValueError: an entry is missing, or the groups differ.
    """
    check.kind("state_dict", state_dict, dict)
    assert isinstance(state_dict, dict)
    missing = {"state", "param_groups"} - state_dict.keys()
    if missing:
        fail("state_dict", f"an entry {sorted(missing)[0]!r}", f"{list(state_dict)}"[:80])
    saved, states = state_dict["param_groups"], state_dict["state"]
    check.kind("state_dict['param_groups']", saved, list, tuple)
    check.kind("state_dict['state']", states, dict)
    if len(saved) != len(groups):
        fail("state_dict", f"{len(groups)} groups of parameters", str(len(saved)))
    places: list[int] = []
    for group, own in zip(saved, groups, strict=True):
        check.kind("state_dict['param_groups']", group, dict)
        here = group.get("params")
        if not isinstance(here, list | tuple) or not all(isinstance(place, int) for place in here):
            fail("state_dict", "a list of ints as the params of a group", describe(here), TypeError)
        if len(here) != len(own["params"]):
            fail("state_dict", f"{len(own['params'])} parameters in a group", str(len(here)))
        places += here
    if len(set(places)) != len(places):
        fail("state_dict", "each parameter once", f"{places}"[:80])
    for state in states.values():
        check.kind("state_dict['state']", state, dict)


def check_values(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Check the numbers and moments of a state of the right structure for the parameters of ``groups``.

    Raises:
        TypeError: a hyperparameter is missing or has the wrong type.
        ValueError: a hyperparameter is out of range, or a parameter's state does not fit it.
    """
    for group, own in zip(state_dict["param_groups"], groups, strict=True):
        check_group(group)
        for place, param in zip(group["params"], own["params"], strict=True):
            _check_state(param, state_dict["state"].get(place))


def _check_state(param: Tensor, state: dict[str, Any] | None) -> None:
    """Check the state of ``param``: empty, or a step count and two moments."""
    if not state:
        return
    if state.keys() != {"step", *MOMENTS}:
        fail("state_dict", f"step, {', '.join(MOMENTS)} for a parameter", f"{list(state)}"[:80])
    step = state["step"]
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= check.LARGEST_INT:
        fail("state_dict", "step as an int from 1", describe(step))
    for moment in MOMENTS:
        tensor = state[moment]
        if (
            not isinstance(tensor, Tensor)
            or not tensor.is_floating_point()
            or tensor.layout != torch.strided
            or tensor.shape != param.shape
            or (tensor.is_meta and not param.is_meta)
        ):
            expected = f"{moment} of shape {tuple(param.shape)} as its parameter has"
            fail("state_dict", expected, describe(tensor))
