"""Going back to a good state of a run, with a smaller learning rate, when its loss is no number."""

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
    metrics_bytes: int = 0


class Recovery:
    """The last good states of a run, kept beside the parameters, and how many ``times`` it went back.

    A state is good once a loss computed from it was finite, which shows a step later. So the two last
    states are kept: the older one is good, the newer one may be. To go back is to give the parameters and
    the optimizer the values of the newest good one in their own memory, as CUDA graphs need, to restore
    the random generators, and to halve the learning rates: what follows has the noise that it had before.

    Args:
        dmm: the model in training.
        rate: the learning rate of before the first step.
    """

    def __init__(self, dmm: DMM, rate: float) -> None:
        self._dmm, self._rate = dmm, rate
        self.times = 0
        self._states: list[dict[str, Any]] = []

    @property
    def rate_factor(self) -> float:
        """The product of all halvings of the learning rate."""
        return _LESS**self.times

    def saved(self) -> dict[str, Any]:
        """Contents for a checkpoint, from which a resumed run recovers as this one would."""
        return {"times": self.times, "states": list(self._states)}

    def load(self, path: Path, saved: dict[str, Any]) -> None:
        """Take over what :meth:`saved` gave; ``path`` is where it was kept, for the message.

        Raises:
            CheckpointError: it is something else.
        """
        times, states = saved.get("times"), saved.get("states")
        parts = {"progress", "model", "optimizer", "rng"}
        if (
            not isinstance(times, int)
            or not isinstance(states, list)
            or not 1 <= len(states) <= 2
            or not all(isinstance(state, dict) and state.keys() == parts for state in states)
        ):
            fail(str(path), "one or two states to go back to", describe(saved), CheckpointError)
        self.times, self._states = times, list(states)

    def keep(self, progress: Progress, optimizer_state: dict[str, Any]) -> None:
        """Keep the state there is now; all losses up to here have been read, and were finite.

        Nothing is read from a GPU: the copies stay there.

        Args:
            progress: where training stands.
            optimizer_state: by parameter, as ``PyroOptim.get_state`` gives it.
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
        }
        self._states = [*self._states[-1:], _copy(state)]

    def go_back(self, optimizer: PyroClippedAdam, epoch: int, step: int, now: Progress) -> bool:
        """Restore the newest good state, and set ``now`` to where it was; False if there is none.

        The lowest validation loss stays what it is, as the checkpoint of that model does.

        Args:
            optimizer: what trains the model.
            epoch: that of the first step whose loss was no finite number.
            step: that step, within its epoch.
            now: where training stands.
        """
        if _place(self._states[-1]) == (epoch, step):
            # Its very first loss was that one.
            del self._states[-1]
        if not self._states:
            return False
        state = self._states[-1]
        self.times += 1
        with torch.no_grad():
            for name, tensor in self._dmm.state_dict().items():
                tensor.copy_(state["model"][name])
            for param, each in optimizer.optim_objs.items():
                kept = state["optimizer"].get(pyro.get_param_store().param_name(param))
                _restore(each.state[param], kept)
                start = self._rate if kept is None else kept["param_groups"][0]["lr"]
                set_rate(each.param_groups[0], float(start) * _LESS)
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"])
        for name, value in _copy(state["progress"]).items():
            if name != "best":
                setattr(now, name, value)
        self._states = []
        return True


def _place(state: dict[str, Any]) -> tuple[int, int]:
    return state["progress"]["epoch"], state["progress"]["step"]


def _restore(own: dict[str, Any], kept: dict[str, Any] | None) -> None:
    """Give one parameter's optimizer the state ``kept``, or that of before the first step."""
    saved = kept["state"].get(0, {}) if kept is not None else {}
    for name, value in own.items():
        if isinstance(value, Tensor):
            value.copy_(torch.as_tensor(saved.get(name, 0)))
        else:
            own[name] = int(saved.get(name, 0))


def _copy(tree: Any) -> Any:
    """A copy that shares no memory."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copy(value) for value in tree)
    return tree
