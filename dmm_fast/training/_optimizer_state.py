"""The state of the optimizer: matched to the parameters of a model, and its learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmm_fast._network import rename_former
from dmm_fast.check import describe, fail
from dmm_fast.model import DMM
from dmm_fast.optim import ClippedAdam, PyroClippedAdam
from dmm_fast.optim._capturable import set_rate
from dmm_fast.training._checkpoint import CheckpointError

_PREFIX = "dmm$$$"
_SHOWN = 3


def fit_to_model(path: Path, state: dict[str, Any], dmm: DMM) -> dict[str, Any]:
    """The state under the current names of the parameters of ``dmm``, in their order.

    Former names of parameters are recognised, as they are by ``load_state_dict``.

    Args:
        path: the file that ``state`` was read from, for error messages.
        state: the state by name in Pyro's parameter store, as ``PyroOptim.get_state`` returns it.
        dmm: the model to be trained.

    Raises:
        CheckpointError: names are unknown or missing, or a state does not fit its parameter.
    """
    own = {name.removeprefix(_PREFIX): each for name, each in state.items() if name.startswith(_PREFIX)}
    unknown = {name for name in state if not name.startswith(_PREFIX)}
    given = len(own)
    for prefix, module in dmm.named_modules():
        rename_former(module, own, f"{prefix}." if prefix else "")
    if len(own) < given:
        fail(str(path), "one state for a parameter", "one under each of two names of it", CheckpointError)
    parameters = dict(dmm.named_parameters())
    unknown |= own.keys() - parameters.keys()
    missing = parameters.keys() - own.keys()
    if unknown or missing:
        strange = {"unknown": unknown, "missing": missing}
        found = [f"{_some(names)} {how}" for how, names in strange.items() if names]
        expected = "an optimizer state for the parameters of this DMM"
        fail(str(path), expected, f"one with {' and '.join(found)}", CheckpointError)
    for name, parameter in parameters.items():
        expected = f"an optimizer state for {name}"
        if not isinstance(own[name], dict):
            fail(str(path), expected, describe(own[name]), CheckpointError)
        try:
            ClippedAdam([parameter]).load_state_dict(own[name])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: expected {expected}, got {error}") from error
    return {_PREFIX + name: own[name] for name in parameters}


def in_order(tree: Any) -> Any:
    """The same tree with the keys of its dicts sorted, so that equal trees are written as equal bytes."""
    return {key: in_order(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


def _some(names: Iterable[str]) -> str:
    """The number of names, followed by the first few."""
    ordered = sorted(names)
    dots = ", ..." if len(ordered) > _SHOWN else ""
    return f"{len(ordered)} ({', '.join(ordered[:_SHOWN])}{dots})"


def set_learning_rate(optimizer: PyroClippedAdam, waiting: dict[str, Any], lr: float) -> None:
    """Set the learning rate of each parameter's optimizer.

    Args:
        optimizer: the optimizer of the run.
        waiting: the state that the parameters' optimizers will start from, before the first step.
        lr: the learning rate.
    """
    optimizers = list(optimizer.optim_objs.values())
    states = [each.param_groups for each in optimizers] or [each["param_groups"] for each in waiting.values()]
    for groups in states:
        for group in groups:
            set_rate(group, lr)
