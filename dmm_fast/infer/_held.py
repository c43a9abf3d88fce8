"""Host-side state on which a captured step depends, and a check that it is unchanged.

The check runs before every replay, so its duration counts whenever the loss of each step is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

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
"""The dictionaries of a module whose values affect a step."""

_GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)
"""The hooks on all modules, as ``torch.nn.modules.module.register_module_forward_hook`` adds them."""

_END = object()
_MODE = itemgetter("training")
_TRAINED = attrgetter("requires_grad")
_TENSOR_HOOKS = attrgetter("_backward_hooks")
_GRADIENT_HOOKS = attrgetter("_post_accumulate_grad_hooks")
_OF_OPTIMIZER = attrgetter("param_groups", "state")
_OF_SCHEDULER = attrgetter("optimizer.param_groups", "optimizer.state")


class Modules:
    """A snapshot of the modules behind model and guide: submodules, attributes, tensors and hooks.

    The modules are those that model and guide are, are methods of, wrap (Pyro's handlers,
    ``functools.partial``), close over or name as globals; those that are attributes of an object whose
    methods they are; and all their submodules.
    """

    def __init__(self, model: Any, guide: Any) -> None:
        self._functions = (model, guide)
        modules = list(dict.fromkeys(m for root in _behind(model, guide) for m in root.modules()))
        self._attributes = [vars(module) for module in modules]
        # TorchScript modules keep their mode outside __dict__.
        self._modes = [vars(each) if "training" in vars(each) else _Attributes(each) for each in modules]
        named = [
            (attributes, name)
            for attributes in self._attributes
            for name in attributes
            if name != "training" and not name.startswith("_")
        ]
        named += _globals_of(model, guide)
        self._mappings, self._names = [mapping for mapping, _ in named], [name for _, name in named]
        # Lists such as that of the flows: the attribute may be the same list with different items.
        self._lists = [value for value in self._named() if type(value) is list]
        # References to the dictionaries, most of them empty; their contents are read at every step.
        parts = [getattr(module, part) for module in modules for part in _PARTS]
        parts += _GLOBAL_HOOKS
        self._empty = [part for part in parts if not part]
        self._dicts = [part for part in parts if part and type(part) is dict]
        self._hooks = [part for part in parts if part and type(part) is not dict]
        tensors = {id(x): x for part in parts for x in part.values() if isinstance(x, Tensor)}
        self._tensors = [x for x in tensors.values() if not is_lazy(x) and x.layout == torch.strided]
        self._read = list(self._objects()), self._numbers()

    def now(self, model: Any, guide: Any) -> Modules:
        """This object if nothing has changed, else a new snapshot."""
        same = model is self._functions[0] and guide is self._functions[1]
        return self if same and self._are_same() else Modules(model, guide)

    def modes(self) -> tuple[bool, ...]:
        """The training mode of each module, since a graph is captured with or without dropout."""
        return tuple(map(_MODE, self._modes))

    def own(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """Select the tensors that are parameters of these modules."""
        ids = set(map(id, self._tensors))
        return {name: tensor for name, tensor in named.items() if id(tensor) in ids}

    def _are_same(self) -> bool:
        objects, numbers = self._read
        # Both sequences end with a sentinel, so that a different number of objects is a difference too.
        return all(map(is_, self._objects(), objects)) and self._numbers() == numbers and not any(self._empty)

    def _named(self) -> Iterator[object]:
        """Attributes of the modules, such as numbers, and the globals."""
        return map(dict.get, self._mappings, self._names)

    def _objects(self) -> Iterator[object]:
        of_tensors = chain(map(_TENSOR_HOOKS, self._tensors), map(_GRADIENT_HOOKS, self._tensors))
        return chain(
            self._named(),
            *map(dict.values, self._dicts),
            *self._lists,
            *[hooks.values() for hooks in (*self._hooks, *filter(None, of_tensors))],
            (_END,),
        )

    def _numbers(self) -> list[int]:
        # An added attribute changes the number of attributes.
        lengths = map(len, self._attributes)
        return [*lengths, *map(_TRAINED, self._tensors), *map(Tensor.data_ptr, self._tensors)]


class Held:
    """The modules, parameters and optimizer state with which a step was done.

    Args:
        modules: a snapshot taken after the step.
        optim: the optimizer of the step.
        params: the parameters of the step, by their names in the store.
    """

    def __init__(self, modules: Modules, optim: PyroOptim, params: dict[str, Tensor]) -> None:
        self._modules = modules
        self._optim_objs = list(optim.optim_objs.values())
        self._schedulers = list(filter(_is_scheduler, self._optim_objs))
        self._optimizers = [each for each in self._optim_objs if not _is_scheduler(each)]
        self._optim = [
            ([_copied(group) for group in groups], {param: dict(state) for param, state in states.items()})
            for groups, states in self._read_optim()
        ]
        # Parameters of a module outlive the store's entries; all others exist in the store only.
        self._of_modules = {name: p for name, p in modules.own(params).items() if "$$$" in name}
        self._of_store = {name: p for name, p in params.items() if name not in self._of_modules}
        self._addresses = self._read_addresses()

    @property
    def params(self) -> Iterator[Tensor]:
        """The parameters of the step."""
        return chain(self._of_modules.values(), self._of_store.values())

    def change(self, modules: Modules, optim: PyroOptim) -> str | None:
        """The thing that has changed since the step, in words; None if nothing has.

        If nothing has changed, the modules' parameters are put back into the store, where another model's may
        have replaced them.
        """
        if modules is not self._modules:
            return "a module, a parameter or a hook of model or guide"
        stored = pyro.get_param_store().named_parameters()
        with _BY_IDENTITY:
            # Numbers have to be equal; a tensor has to be the same object, since a graph uses its memory.
            same = list(optim.optim_objs.values()) == self._optim_objs and _are_equal(
                self._read_optim(), self._optim
            )
            is_stored = not self._of_store or self._of_store.items() <= stored
            are_back = self._of_modules.items() <= stored
        if not same:
            return "a number or a tensor of the optimizer"
        if not is_stored:
            return "a parameter in Pyro's store"
        if self._of_store and self._addresses != self._read_addresses():
            return "the memory of a parameter"
        if not are_back:
            store_own(self._of_modules.items())
        return None

    def _read_optim(self) -> list[tuple[Any, Any]]:
        """The parameter groups and the state of each optimizer."""
        return [*map(_OF_OPTIMIZER, self._optimizers), *map(_OF_SCHEDULER, self._schedulers)]

    def _read_addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._of_store.values()))


class _Attributes:
    """Access to an object's attributes as items."""

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self._owner, name)


def _copied(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a group, including its lists, such as betas, which may be changed in place."""
    return {
        key: list(value) if type(value) is list and key != "params" else value for key, value in group.items()
    }


def _are_equal(now: object, then: object) -> bool:
    try:
        return bool(now == then)
    except ValueError:  # numpy arrays compare elementwise; they are different arrays
        return False


class _ByIdentity(TorchFunctionMode):
    """Makes tensors equal only to themselves, so that ``==`` of containers is fast and reads no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> bool:
        return False


_BY_IDENTITY = _ByIdentity()


def _is_scheduler(each: Any) -> bool:
    return hasattr(each, "optimizer")


def optimizers(optim: PyroOptim) -> Iterator[torch.optim.Optimizer]:
    """The torch optimizers inside a Pyro optimizer."""
    for each in optim.optim_objs.values():
        yield getattr(each, "optimizer", each)  # unwraps a scheduler


def _behind(*functions: Any) -> Iterator[nn.Module]:
    """The modules that ``functions`` are, are methods of, wrap or close over."""
    found = list(functions)
    seen: set[int] = set()
    for each in found:  # the list grows in the loop
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
                with suppress(ValueError):  # a closure variable without a value yet
                    found.append(cell.cell_contents)


def _globals_of(*functions: Any) -> list[tuple[dict[str, Any], str]]:
    """The globals that functions use and that are modules, as pairs of a dictionary and a key."""
    found = []
    for function in functions:
        code = getattr(function, "__code__", None)
        mapping = getattr(function, "__globals__", {})
        names = () if code is None else code.co_names
        found += [(mapping, name) for name in names if isinstance(mapping.get(name), nn.Module)]
    return found
