"""Registration of module parameters in Pyro's parameter store."""

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
    """Register the trainable parameters of ``module`` with the running Pyro program.

    This is ``pyro.module`` with the same names, ``<name>$$$<parameter>``, except for one thing. If the store
    already has a parameter under a name, ``pyro.module`` keeps it: with two modules registered as ``name`` in
    one process, the second would compute with its own parameters while the optimizer updated those of the
    first. Here a module that is called replaces the stored parameters by its own; a second module in the same
    step is registered as ``<name>_1``. The first one keeps its names, under which optimizers save their
    state. Parameters without ``requires_grad`` are skipped without a warning, and so are tensors that replace
    parameters, as in ``torch.func.functional_call``.

    Within :func:`~dmm_fast._one_step.one_step` the registration by the guide serves the model too, as long as
    the same parameters are in the store and no handlers other than trace and replay are active, which might
    treat the parameters of guide and model differently.
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
    """True if the parameters registered earlier, by full name, are the current ones and in the store."""
    stored = dict(pyro.get_param_store().named_parameters())
    return [*map(id, full.values())] == [*map(id, own.values())] and all(
        stored.get(name) is parameter for name, parameter in full.items()
    )


def _free_name(name: str, own: dict[str, Tensor]) -> str:
    """``name``, with a number appended if another module uses it in the step that is being traced.

    A trace has one parameter per name: of two modules with one name an optimizer would see only the last.
    """
    traces = [each.trace.nodes for each in _PYRO_STACK if isinstance(each, TraceMessenger)]

    def is_free(candidate: str) -> bool:
        found = [(nodes.get(f"{candidate}$$${part}"), own[part]) for nodes in traces for part in own]
        return all(node is None or node["value"] is parameter for node, parameter in found)

    candidates = (f"{name}_{number}" if number else name for number in count())
    return next(filter(is_free, candidates))


def store_own(named: Iterable[tuple[str, Tensor]]) -> None:
    """Put each parameter under its name into the parameter store, replacing another one there."""
    store = pyro.get_param_store()
    stored = dict(store.named_parameters())
    others = {name: parameter for name, parameter in named if stored.get(name) is not parameter}
    if others:
        real: dict[str, constraints.Constraint] = dict.fromkeys(others, constraints.real)
        store.set_state({"params": others, "constraints": real})
