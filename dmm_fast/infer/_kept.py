"""The state of a signature: its graph, the graph's inputs, and the number of warm-up steps so far."""

from collections import defaultdict
from typing import Any

import pyro
import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.infer._cuda_graphs import Step
from dmm_fast.infer._held import Held
from dmm_fast.infer._signatures import Call


class Kept:
    """The state of a signature: its graph's inputs, the number of warm-ups done, and then its graph.

    Args:
        calls: the arguments of each of its steps, for which memory is allocated.

    Raises:
        ValueError: their tensors are on several devices.
    """

    def __init__(self, calls: list[Call]) -> None:
        values = _values(calls)
        devices = {value.device for value in values if isinstance(value, Tensor)}
        if len(devices) > 1:
            check.fail("arguments", "tensors on one device", ", ".join(sorted(map(str, devices))))
        device = next(iter(devices), None) or _device_of_parameters()
        self.calls: list[Call] = [
            (
                tuple([_own(value, device) for value in args]),
                {name: _own(value, device) for name, value in kwargs.items()},
            )
            for args, kwargs in calls
        ]
        self.warm_ups = self.used = 0
        self.params: dict[str, Tensor] = {}
        self.replay: Step | None = None
        self.held: Held | None = None
        # Floats, and tensors grouped by dtype, since one launch on a GPU can copy all tensors of a dtype.
        own = _values(self.calls)
        places = defaultdict[torch.dtype, list[int]](list)
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                places[value.dtype].append(place)
        self._tensors = [([own[place] for place in alike], alike) for alike in places.values()]
        self._floats = [(own[place], place) for place, value in enumerate(values) if isinstance(value, float)]

    def fill(self, calls: list[Call]) -> None:
        """Copy the arguments of the steps into the graph's inputs."""
        given = _values(calls)
        for own, places in self._tensors:
            tensors = [given[place] for place in places]
            # Detaching costs less than torch.no_grad().
            tensors = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
            torch._foreach_copy_(own, tensors, non_blocking=True)
        for number, place in self._floats:
            number.fill_(given[place])


def _values(calls: list[Call]) -> list[Any]:
    """All arguments, call by call; keyword arguments are sorted by name."""
    values: list[Any] = []
    for args, kwargs in calls:
        values += args
        if kwargs:
            values += [kwargs[name] for name in sorted(kwargs)]
    return values


def _own(value: Any, device: torch.device) -> Any:
    """A graph's input for ``value``: new memory for a tensor or float, which may change; else the value."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, requires_grad=False)
    return torch.empty((), dtype=torch.float64, device=device) if isinstance(value, float) else value


def _device_of_parameters() -> torch.device:
    params = (param for _, param in pyro.get_param_store().named_parameters())
    return next((param.device for param in params), torch.get_default_device())
