"""Derivatives that compiled ops do not have: an error in their place.

A compiled op has first derivatives in reverse mode. torch takes what is not registered for zero: a second
derivative, by differentiating a backward pass, and forward mode, which carries a tangent with a tensor.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from dmm_fast.check import fail
from dmm_fast.ops._backends import BackendError

_FIRST = "first derivatives in reverse mode, all that a compiled backend computes"


def may_be_recorded(given: Iterable[Tensor | Iterable[Tensor]]) -> bool:
    """Whether autograd may record what is computed of these tensors, or tuples of tensors.

    Within a transform of ``torch.func`` a tensor does not tell whether the one that it stands for requires a
    gradient.
    """
    if not torch.is_grad_enabled():
        return False
    leaves = chain.from_iterable((value,) if isinstance(value, Tensor) else value for value in given)
    return any(tensor.requires_grad for tensor in leaves) or torch._C._are_functorch_transforms_active()


def is_recorded_plainly() -> bool:
    """Whether autograd records, and nothing beside it: no transform, tangent or compiler."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not forward_mode_is_on()
        and not torch.compiler.is_compiling()
    )


def refuse(op: str, wanted: str, expected: str = _FIRST) -> NoReturn:
    """Raise that the compiled ``op`` does not have the derivative that is ``wanted``.

    Raises:
        BackendError: always.
    """
    fail(op, expected, f'{wanted}: use_backend("reference") computes it', BackendError)


def forward_mode_is_on() -> bool:
    """Whether any tensor may carry a tangent; within ``torch.func.jvp`` too, which enters a dual level."""
    return forward_ad._current_level >= 0


def refuse_tangents(op: str, given: Any) -> None:
    """Refuse tensors that carry a tangent, anywhere within ``given``, which ``op`` would drop.

    Raises:
        BackendError: a tensor carries one.
    """
    leaves, _ = tree_flatten(given)
    if any(isinstance(leaf, Tensor) and _carries_tangent(leaf) for leaf in leaves):
        refuse(op, "forward mode")


def _carries_tangent(tensor: Tensor) -> bool:
    """Whether ``tensor`` has a tangent, in the innermost transform of ``torch.func`` or one around it."""
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    transform: Any = torch._C._functorch.peek_interpreter_stack()
    if transform is None:
        return False
    if torch._C._functorch.maybe_get_level(tensor) == transform.level():
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():
        return _carries_tangent(tensor)
