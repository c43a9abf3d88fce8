"""Parameters of modules in Pyro's parameter store."""

from collections.abc import Iterable

import pyro
from torch import Tensor, nn
from torch.distributions import constraints


def register(name: str, module: nn.Module) -> None:
    """Make the trainable parameters of ``module`` parameters of the Pyro program that runs.

    As ``pyro.module``, under the same names, ``<name>$$$<parameter>``. But ``pyro.module`` keeps what the
    store already has under a name: of two modules registered as ``name`` in one process the second would
    compute with its own parameters while the optimizer stepped those of the first. Here a module that is
    called puts its own parameters there. Those of the other keep their names, by which optimizers save
    their state. A parameter without ``requires_grad`` is left out, without a warning; so is a tensor that
    stands in for a parameter, as in ``torch.func.functional_call``.
    """
    own = {
        f"{name}$$${parameter_name}": parameter
        for parameter_name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.is_leaf
    }
    store_own(own.items())
    for full_name, parameter in own.items():
        pyro.param(full_name, parameter)


def store_own(named: Iterable[tuple[str, Tensor]]) -> None:
    """Put each parameter under its name into the parameter store, where another may stand now."""
    store = pyro.get_param_store()
    stored = dict(store.named_parameters())
    others = {name: parameter for name, parameter in named if stored.get(name) is not parameter}
    if others:
        real: dict[str, constraints.Constraint] = dict.fromkeys(others, constraints.real)
        store.set_state({"params": others, "constraints": real})
