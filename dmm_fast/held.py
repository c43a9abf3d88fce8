"""State of the host that a captured step holds on to, and whether it is still so.

A GPU waits for this before every replay whose loss is read.
"""

from collections.abc import Iterator
from operator import is_
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn


class Held:
    """Names, memory and numbers of the parameters and of their optimizers."""

    def __init__(self, optim: PyroOptim) -> None:
        self._objects, self._addresses = _read(optim)

    def is_now(self, optim: PyroOptim) -> bool:
        """Whether all of it is the same."""
        objects, addresses = _read(optim)
        if addresses != self._addresses or len(objects) != len(self._objects):
            return False
        # Most often they are the very objects, which takes no loop in Python to see.
        return all(map(is_, objects, self._objects)) or all(map(_same, objects, self._objects))


def modes(*functions: Any) -> tuple[bool, ...]:
    """The modes of the modules behind model and guide: dropout is in a graph or it is not."""
    owners = [owner for f in functions for owner in (f, getattr(f, "__self__", None))]
    found = list({id(owner): owner for owner in owners if isinstance(owner, nn.Module)}.values())
    for module in found:  # which grows meanwhile
        found += filter(None, module._modules.values())
    return tuple([module.training for module in found])


def optimizers(optim: PyroOptim) -> Iterator[torch.optim.Optimizer]:
    """Torch's optimizers in Pyro's."""
    for each in optim.optim_objs.values():
        yield getattr(each, "optimizer", each)  # behind a scheduler


def _read(optim: PyroOptim) -> tuple[list[object], list[int]]:
    objects: list[object] = []
    addresses = []
    for name, param in pyro.get_param_store().named_parameters():
        objects += (name, param)
        addresses.append(param.data_ptr())
    for optimizer in optimizers(optim):
        for group in optimizer.param_groups:
            objects += group.values()
        for state in optimizer.state.values():
            objects += state.values()
    return objects, addresses


def _same(now: object, then: object) -> bool:
    if now is then:
        return True
    if isinstance(now, list) and isinstance(then, list):  # parameters, or numbers
        return len(now) == len(then) and all(map(_same, now, then))
    return not isinstance(now, Tensor) and not isinstance(then, Tensor) and now == then
