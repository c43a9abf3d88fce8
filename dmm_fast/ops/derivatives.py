"""Derivatives that compiled ops do not have: an error in their place.

A compiled op has first derivatives in reverse mode. torch takes what is not registered for zero: a second
derivative, by differentiating a backward pass, and forward mode, which carries a tangent with a tensor.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from dmm_fast.check import fail
from dmm_fast.ops.backend import BackendError


def refuse(op: str, wanted: str) -> None:
    """Raise that the compiled ``op`` does not have the derivative that is ``wanted``.

    Raises:
        BackendError: always.
    """
    expected = "first derivatives in reverse mode, all that a compiled backend computes"
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
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform is None:
        return False
    if torch._C._functorch.maybe_get_level(tensor) == transform.level():
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():
        return _carries_tangent(tensor)


def once(op: str, backward: Callable[..., Any], ctx: Any, incoming: Iterable[Any]) -> Any:
    """The gradients that ``backward(ctx, *incoming)`` gives, attached to what refuses to differentiate them.

    A context that has an ``op`` says by it which public op it is of; else that is ``op``.
    """
    op = getattr(ctx, "op", op)
    given = [tensor for tensor in tree_flatten((ctx.saved_tensors, incoming))[0] if tensor is not None]
    if forward_mode_is_on():
        refuse_tangents(op, given)
    if not torch.is_grad_enabled():
        return backward(ctx, *incoming)
    with torch.no_grad():
        leaves, tree = tree_flatten(backward(ctx, *incoming))
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]
    attached = _Once.apply(op, len(places), *(leaves[place] for place in places), *given)
    for place, gradient in zip(places, attached, strict=True):
        leaves[place] = gradient
    return tree_unflatten(leaves, tree)


class _Once(torch.autograd.Function):
    """The identity of its first ``count`` tensors, and a function of all of them that has no derivative."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> None:
        refuse(ctx.op, "a second derivative")
