"""Errors for derivatives that compiled ops do not have.

A compiled op has first derivatives in reverse mode. Without these errors torch would take unregistered
derivatives for zero: second derivatives, obtained by differentiating a backward pass, and forward mode, in
which a tensor carries a tangent.
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
    """True if autograd may record operations on these tensors, or tuples of tensors.

    Within a transform of ``torch.func`` the result is True whenever gradients are enabled, since a wrapped
    tensor does not show if the original one requires a gradient.
    """
    if not torch.is_grad_enabled():
        return False
    leaves = chain.from_iterable((value,) if isinstance(value, Tensor) else value for value in given)
    return any(tensor.requires_grad for tensor in leaves) or torch._C._are_functorch_transforms_active()


def is_recorded_plainly() -> bool:
    """True if autograd records and no transform, forward mode or compiler is active."""
    return (
        torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and not forward_mode_is_on()
        and not torch.compiler.is_compiling()
    )


def refuse(op: str, wanted: str, expected: str = _FIRST) -> NoReturn:
    """Raise an error: the compiled ``op`` does not have the derivative ``wanted``.

    Raises:
        BackendError: always.
    """
    fail(op, expected, f'{wanted}: use_backend("reference") computes it', BackendError)


def forward_mode_is_on() -> bool:
    """True if tensors may carry tangents, also within ``torch.func.jvp``, which enters a dual level."""
    return forward_ad._current_level >= 0


def refuse_tangents(op: str, given: Any) -> None:
    """Refuse tensors with a tangent anywhere within ``given``, which ``op`` would drop.

    Raises:
        BackendError: a tensor carries a tangent.
    """
    leaves, _ = tree_flatten(given)
    if any(isinstance(leaf, Tensor) and _carries_tangent(leaf) for leaf in leaves):
        refuse(op, "forward mode")


def _carries_tangent(tensor: Tensor) -> bool:
    """True if ``tensor`` has a tangent in the innermost transform of ``torch.func`` or an enclosing one."""
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    transform: Any = torch._C._functorch.peek_interpreter_stack()
    if transform is None:
        return False
    if torch._C._functorch.maybe_get_level(tensor) == transform.level():
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():
        return _carries_tangent(tensor)
