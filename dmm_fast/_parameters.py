"""Parameters of modules in Pyro's parameter store."""

from collections.abc import Iterable
from itertools import count

import pyro
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import constraints

from dmm_fast._one_step import results


def register(name: str, module: nn.Module) -> None:
    """Make the trainable parameters of ``module`` parameters of the Pyro program that runs.

    As ``pyro.module``, under the same names, ``<name>$$$<parameter>``. But ``pyro.module`` keeps what the
    store already has under a name: of two modules registered as ``name`` in one process the second would
    compute with its own parameters while the optimizer stepped those of the first. Here a module that is
    called puts its own parameters there; a second one in the same step does so as ``<name>_1``. Those of
    the other keep their names, by which optimizers save their state. A parameter without ``requires_grad``
    is left out, without a warning; so is a tensor that stands in for a parameter, as in
    ``torch.func.functional_call``.

    In a step of :func:`~dmm_fast._one_step.one_step` the guide's call is enough, as long as the same
    parameters are in the store, and unless a handler other than a trace and a replay may treat those of guide
    or model in another way.
    """
    own: dict[str, Tensor] = {
        parameter_name: parameter
        for parameter_name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.is_leaf
    }
    done, key = results(), (register, name, id(module))
    counts = done is not None and _are_only_traced()
    if done is not None and counts and _is_registered(done.get(key, {}), own):
        return
    name = _free_name(name, own)
    full = {f"{name}$$${parameter_name}": parameter for parameter_name, parameter in own.items()}
    store_own(full.items())
    for full_name, parameter in full.items():
        pyro.param(full_name, parameter)
    if done is not None and counts:
        done[key] = full


def _are_only_traced() -> bool:
    return all(type(handler) in (TraceMessenger, ReplayMessenger) for handler in _PYRO_STACK)


def _is_registered(full: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Whether the parameters of before, under their full names, are those of now and in the store."""
    stored = dict(pyro.get_param_store().named_parameters())
    return [*map(id, full.values())] == [*map(id, own.values())] and all(
        stored.get(name) is parameter for name, parameter in full.items()
    )


def _free_name(name: str, own: dict[str, Tensor]) -> str:
    """``name``, with a number where another module has it in the step that is being traced.

    A trace has one parameter a name: of two modules of one name an optimizer would see the last alone.
    """
    traces = [each.trace.nodes for each in _PYRO_STACK if isinstance(each, TraceMessenger)]

    def is_free(candidate: str) -> bool:
        found = [(nodes.get(f"{candidate}$$${part}"), own[part]) for nodes in traces for part in own]
        return all(node is None or node["value"] is parameter for node, parameter in found)

    candidates = (f"{name}_{number}" if number else name for number in count())
    return next(filter(is_free, candidates))


def store_own(named: Iterable[tuple[str, Tensor]]) -> None:
    """Put each parameter under its name into the parameter store, where another may stand now."""
    store = pyro.get_param_store()
    stored = dict(store.named_parameters())
    others = {name: parameter for name, parameter in named if stored.get(name) is not parameter}
    if others:
        real: dict[str, constraints.Constraint] = dict.fromkeys(others, constraints.real)
        store.set_state({"params": others, "constraints": real})
