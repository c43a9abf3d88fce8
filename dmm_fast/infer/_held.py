"""State of the host that a captured step holds on to, and whether it is still so.

A GPU waits for this before every replay whose loss is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from dmm_fast._parameters import store_own

_PARTS = (
    "_modules",
    "_parameters",
    "_buffers",
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
"""The dictionaries of a module whose values a step uses."""

_GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)
"""The hooks on all modules, as ``torch.nn.modules.module.register_module_forward_hook`` adds them."""

_VALUES = methodcaller("values")
_TRAINED = attrgetter("requires_grad")
_TENSOR_HOOKS = attrgetter("_backward_hooks")


class Modules:
    """The modules behind model and guide as they are now: parts, attributes, tensors and hooks.

    They are those that model and guide are, are methods of, wrap (Pyro's handlers, ``functools.partial``),
    close over or name as globals, and those that an object has whose methods they are, with all that is
    within them.
    """

    def __init__(self, model: Any, guide: Any) -> None:
        self._functions = (model, guide)
        self._all = list(dict.fromkeys(m for root in _behind(model, guide) for m in root.modules()))
        # The dictionaries themselves, most of them empty: what they hold is read at every step.
        own = [getattr(module, part) for module in self._all for part in _PARTS]
        self._parts: list[Any] = [*own, *_GLOBAL_HOOKS]
        self._attributes = [vars(module) for module in self._all]
        self._named = [
            (attributes, name)
            for attributes in self._attributes
            for name in attributes
            if name != "training" and not name.startswith("_")
        ]
        self._named += _globals_of(model, guide)
        tensors = {id(x): x for part in self._parts for x in part.values() if isinstance(x, Tensor)}
        self._tensors = [x for x in tensors.values() if not is_lazy(x) and x.layout == torch.strided]
        self._read = self._objects(), self._addresses()

    def now(self, model: Any, guide: Any) -> Modules:
        """This object where nothing has changed, else a new one."""
        same = model is self._functions[0] and guide is self._functions[1]
        return self if same and self._are_same() else Modules(model, guide)

    def modes(self) -> tuple[bool, ...]:
        """Modes, True for training: dropout is in a graph or it is not."""
        return tuple([module.training for module in self._all])

    def own(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """Select the tensors that are parameters of a module here."""
        ids = set(map(id, self._tensors))
        return {name: tensor for name, tensor in named.items() if id(tensor) in ids}

    def _are_same(self) -> bool:
        objects, addresses = self._read
        now = self._objects()
        return len(now) == len(objects) and all(map(is_, now, objects)) and self._addresses() == addresses

    def _objects(self) -> list[object]:
        # Attributes of their own, such as a number; one that is added shows by how many there are.
        objects: list[object] = [attributes.get(name) for attributes, name in self._named]
        objects += chain.from_iterable([value for value in objects if type(value) is list])  # such as flows
        objects += map(len, self._attributes)
        objects += chain.from_iterable(map(_VALUES, filter(None, self._parts)))
        objects += map(_TRAINED, self._tensors)
        for hooks in filter(None, map(_TENSOR_HOOKS, self._tensors)):
            objects += hooks.values()
        return objects

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))


class Held:
    """Modules, parameters and numbers of the optimizer with which a step was done.

    Args:
        modules: as they are after the step.
        optim: what stepped the parameters.
        params: the parameters of the step, by their names in the store.
    """

    def __init__(self, modules: Modules, optim: PyroOptim, params: dict[str, Tensor]) -> None:
        self._modules = modules
        self._optim = _read(optim)
        # A module keeps what it registers whatever becomes of the store; the rest is only there.
        self._of_modules = {name: p for name, p in modules.own(params).items() if "$$$" in name}
        self._of_store = {name: p for name, p in params.items() if name not in self._of_modules}
        self._addresses = self._read_addresses()

    @property
    def params(self) -> Iterator[Tensor]:
        """The parameters of the step."""
        return chain(self._of_modules.values(), self._of_store.values())

    def change(self, modules: Modules, optim: PyroOptim) -> str | None:
        """Say what is not as it was; None where everything is."""
        if modules is not self._modules:
            return "a module, a parameter or a hook of model or guide"
        now, then = _read(optim), self._optim
        # Most often they are the very objects, which takes no loop in Python to see.
        if len(now) != len(then) or not (all(map(is_, now, then)) or all(map(_same, now, then))):
            return "a number or a tensor of the optimizer"
        if self._of_store:
            stored = dict(pyro.get_param_store().named_parameters())
            if not all(stored.get(name) is p for name, p in self._of_store.items()):
                return "a parameter in Pyro's store"
            if self._addresses != self._read_addresses():
                return "the memory of a parameter"
        return None

    def put_back(self) -> None:
        """Put the modules' parameters into the store, where those of another model may stand by now."""
        store_own(self._of_modules.items())

    def _read_addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._of_store.values()))


def optimizers(optim: PyroOptim) -> Iterator[torch.optim.Optimizer]:
    """Torch's optimizers in Pyro's."""
    for each in optim.optim_objs.values():
        yield getattr(each, "optimizer", each)  # behind a scheduler


def _behind(*functions: Any) -> Iterator[nn.Module]:
    """The modules that functions are, are methods of, wrap or close over."""
    found = list(functions)
    seen: set[int] = set()
    for each in found:  # which grows meanwhile
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, nn.Module):
            yield each
        elif callable(each):
            found += [mapping.get(name) for mapping, name in _globals_of(each)]
            owner = getattr(each, "__self__", None)
            if owner is not None and not isinstance(owner, nn.Module):
                found += [
                    value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, nn.Module)
                ]
            if isinstance(each, partial):
                found += (each.func, *each.args, *each.keywords.values())
            found += (getattr(each, "__self__", None), getattr(each, "__wrapped__", None))
            for cell in getattr(each, "__closure__", None) or ():
                with suppress(ValueError):  # a variable that has no value yet
                    found.append(cell.cell_contents)


def _globals_of(*functions: Any) -> list[tuple[dict[str, Any], str]]:
    """Places, a dictionary and a key, at which functions find the modules that they name as globals."""
    found = []
    for function in functions:
        code = getattr(function, "__code__", None)
        mapping = getattr(function, "__globals__", {})
        names = () if code is None else code.co_names
        found += [(mapping, name) for name in names if isinstance(mapping.get(name), nn.Module)]
    return found


def _read(optim: PyroOptim) -> list[object]:
    objects: list[object] = []
    for optimizer in optimizers(optim):
        for group in optimizer.param_groups:
            objects += group.values()
        for state in optimizer.state.values():
            objects += state.values()
    return objects


def _same(now: object, then: object) -> bool:
    if now is then:
        return True
    if isinstance(now, list) and isinstance(then, list):  # parameters, or numbers
        return len(now) == len(then) and all(map(_same, now, then))
    return not isinstance(now, Tensor) and not isinstance(then, Tensor) and now == then
