"""Recovery from a loss that is not finite: an earlier state of the run at a lower learning rate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from dmm_fast.check import describe, fail
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.optim._capturable import set_rate
from dmm_fast.training._averaging import Averaging
from dmm_fast.training._checkpoint import CheckpointError

MOST_RECOVERIES = 10

_LESS = 0.5


@dataclasses.dataclass
class Progress:
    """Position in a training run; the fields are those of :class:`~dmm_fast.training.Checkpoint`."""

    epoch: int = 0
    step: int = 0
    order: Tensor | None = None
    epoch_loss: float = 0.0
    best: float | None = None
    waited: int = 0
    metrics_bytes: int = 0


class Recovery:
    """The last states of a run, and the number of ``times`` that it has gone back to one of them.

    A state is good if a loss computed from it is finite, which is known one step later. The two latest
    states are therefore kept: the older one is good, and the newer one may be. Going back copies the newest
    good state into the existing memory of parameters and optimizer, as CUDA graphs need, restores the random
    generators, so that the steps are repeated with the same noise, and halves the learning rates.

    Args:
        dmm: the model in training.
        averaging: the averages of its parameters.
        rate: the learning rate before the first step.
    """

    def __init__(self, dmm: DMM, averaging: Averaging, rate: float) -> None:
        self._dmm, self._averaging, self._rate = dmm, averaging, rate
        self.times = 0
        self._states: list[dict[str, Any]] = []

    @property
    def rate_factor(self) -> float:
        """The product of all halvings of the learning rate."""
        return _LESS**self.times

    def saved(self) -> dict[str, Any]:
        """The states to store in a checkpoint, with which a resumed run recovers as this one would."""
        return {"times": self.times, "states": list(self._states)}

    def load(self, path: Path, saved: dict[str, Any]) -> None:
        """Restore the result of :meth:`saved`; ``path`` is the file it was read from, for error messages.

        Raises:
            CheckpointError: ``saved`` has another form.
        """
        times, states = saved.get("times"), saved.get("states")
        parts = {"progress", "model", "optimizer", "rng", *self._averages()}
        if (
            not isinstance(times, int)
            or not isinstance(states, list)
            or not 1 <= len(states) <= 2
            or not all(isinstance(state, dict) and state.keys() == parts for state in states)
        ):
            fail(str(path), "one or two states to go back to", describe(saved), CheckpointError)
        for state in states:
            self._averaging.check(path, "average", state.get("average", {}))
        self.times, self._states = times, list(states)

    def _averages(self) -> dict[str, Any]:
        """The part of a state that only a run with averaging has."""
        return {"average": self._averaging.tensors} if self._averaging.tensors else {}

    def keep(self, progress: Progress, optimizer_state: dict[str, Any]) -> None:
        """Keep the current state; all losses so far must have been read and found finite.

        The copies stay on the device, so nothing is read from a GPU.

        Args:
            progress: the current position of training.
            optimizer_state: the state by parameter, as ``PyroOptim.get_state`` returns it.
        """
        if self._states and _place(self._states[-1]) == (progress.epoch, progress.step):
            return
        rng = {"cpu": torch.get_rng_state()}
        if self._dmm.z_0.is_cuda:
            rng["cuda"] = torch.cuda.get_rng_state()
        state = {
            "progress": vars(progress),
            "model": dict(self._dmm.state_dict()),
            "optimizer": optimizer_state,
            "rng": rng,
            **self._averages(),
        }
        self._states = [*self._states[-1:], _copy(state)]

    def go_back(self, optimizer: PyroClippedAdam, epoch: int, step: int, now: Progress) -> bool:
        """Restore the newest good state and set ``now`` to its position; return False if there is none.

        The lowest validation loss is kept, since the checkpoint of that model is kept too. Evaluations that
        are undone do not count as evaluations since.

        Args:
            optimizer: the optimizer that trains the model.
            epoch: the epoch of the first step whose loss was not finite.
            step: that step within its epoch.
            now: the current position of training.
        """
        if _place(self._states[-1]) == (epoch, step):
            # The first loss computed from this state was not finite, so the state is not good.
            del self._states[-1]
        if not self._states:
            return False
        state = self._states[-1]
        self.times += 1
        with torch.no_grad():
            for name, tensor in self._dmm.state_dict().items():
                tensor.copy_(state["model"][name])
            self._averaging.restore(state.get("average", {}))
            for param, each in optimizer.optim_objs.items():
                kept = state["optimizer"].get(pyro.get_param_store().param_name(param))
                _restore(each.state[param], kept)
                start = self._rate if kept is None else kept["param_groups"][0]["lr"]
                set_rate(each.param_groups[0], float(start) * _LESS)
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        if now.best != state["progress"]["best"]:
            now.waited = 0
        else:
            now.waited = state["progress"].get("waited", 0)
        for name, value in _copy(state["progress"]).items():
            if name not in ("best", "waited"):
                setattr(now, name, value)
        self._states = []
        return True


def _place(state: dict[str, Any]) -> tuple[int, int]:
    return state["progress"]["epoch"], state["progress"]["step"]


def _restore(own: dict[str, Any], kept: dict[str, Any] | None) -> None:
    """Set the state of one parameter's optimizer to ``kept``; None: to the state before the first step."""
    saved = kept["state"].get(0, {}) if kept is not None else {}
    for name, value in own.items():
        if isinstance(value, Tensor):
            value.copy_(torch.as_tensor(saved.get(name, 0)))
        else:
            own[name] = int(saved.get(name, 0))


def _copy(tree: Any) -> Any:
    """A deep copy, whose tensors share no memory with ``tree``."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copy(value) for value in tree)
    return tree
