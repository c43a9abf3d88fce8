"""State of the host that a captured SVI step holds on to, compared before every replay."""

from collections.abc import Iterator
from operator import is_
from typing import Any, NamedTuple

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn


def modes(*functions: Any) -> tuple[bool, ...]:
    """Which modules behind model and guide are training: dropout is in a graph or it is not."""
    owners = [owner for f in functions for owner in (f, getattr(f, "__self__", None))]
    roots = {id(owner): owner for owner in owners if isinstance(owner, nn.Module)}
    found: list[bool] = []
    seen: set[nn.Module] = set()
    for root in roots.values():
        _add_modes(root, found, seen)
    return tuple(found)


def _add_modes(module: nn.Module, found: list[bool], seen: set[nn.Module]) -> None:
    """Add the modes of a module and those below it; ``modules()`` takes several times as long."""
    seen.add(module)
    found.append(module.training)
    for child in module._modules.values():
        if child is not None and child not in seen:
            _add_modes(child, found, seen)


def optimizers(optim: PyroOptim) -> Iterator[torch.optim.Optimizer]:
    """The optimizers of torch behind one of Pyro, which has one for each parameter."""
    for each in optim.optim_objs.values():
        yield getattr(each, "optimizer", each)  # behind a scheduler


class Held(NamedTuple):
    """What a captured step has taken from the host for good: names, tensors, numbers; and addresses."""

    objects: list[object]
    addresses: list[int]

    def is_same_as(self, then: "Held") -> bool:
        """Whether the objects are the same, or equal numbers and names, at the same addresses."""
        if self.addresses != then.addresses or len(self.objects) != len(then.objects):
            return False
        # Every step comes here: as a rule they are identical, which is found out in C.
        return all(map(is_, self.objects, then.objects)) or all(map(_same, self.objects, then.objects))


def held_by_step(optim: PyroOptim) -> Held:
    """All that a step would take from the host now."""
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
    return Held(objects, addresses)


def _same(now: object, then: object) -> bool:
    if now is then:
        return True
    if isinstance(now, list) and isinstance(then, list):  # the parameters of a group
        return len(now) == len(then) and all(map(is_, now, then))
    return not isinstance(now, Tensor) and not isinstance(then, Tensor) and now == then
