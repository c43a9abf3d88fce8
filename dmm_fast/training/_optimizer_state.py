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


class OptimizerState:
    """The state of the optimizer of a run, also before its first step.

    The optimizer adopts a loaded state parameter by parameter at that step; until then it is kept here.

    Args:
        optimizer: the optimizer of the run.
        dmm: the model in training.
    """

    def __init__(self, optimizer: PyroClippedAdam, dmm: DMM) -> None:
        self._optimizer, self._dmm = optimizer, dmm
        self._waiting: dict[str, Any] = {}

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Start from a state that was read from ``path``; raises as :func:`fit_to_model` does."""
        # A checkpoint written before the first step has no optimizer state yet.
        self._waiting = fit_to_model(path, state, self._dmm) if state else {}
        self._optimizer.set_state(self._waiting)

    def now(self, steps_done: int) -> dict[str, Any]:
        """The state by parameter after so many steps, with its keys in the same order in every process."""
        state = {**self._waiting, **self._optimizer.get_state()}
        if steps_done == 0 and not self._waiting:
            # After going back to the very start only the learning rates remain.
            state = {name: {**each, "state": {}} for name, each in state.items()}
        ordered: dict[str, Any] = in_order(state)
        return ordered

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of each parameter's optimizer."""
        optimizers = list(self._optimizer.optim_objs.values())
        waiting = [each["param_groups"] for each in self._waiting.values()]
        for groups in [each.param_groups for each in optimizers] or waiting:
            for group in groups:
                set_rate(group, lr)
