"""``clipped_adam``: one step of Adam with clipped gradients, for any number of tensors at once."""

from typing import Any

import torch
from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled

_pick = backend.reference_op("clipped_adam", reference.clipped_adam)


def clipped_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int | Tensor | list[Tensor],
    lr: float | Tensor | list[Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    centered_variance: bool = False,
) -> None:
    r"""Step every tensor of ``params`` in place.

    For each parameter ``p`` with gradient ``g`` and moving averages ``m``, ``v`` of its shape::

        g <- clamp(g, -clip_norm, clip_norm)
        d  = g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * d
        v <- beta2 * v + (1 - beta2) * e^2,    e = d - m if centered_variance else d
        p <- p - lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(v) + eps)

    The clamp is written back into ``grads``; the weight decay is not. The four lists are parallel,
    with tensors of any shapes, all of one floating dtype on one device; one bucket of an optimizer.

    ``step`` and ``lr`` are numbers, or tensors of no dimension beside the parameters: one for all, or
    a list with one for each. Tensors are read where they are when the step runs, so that a CUDA graph
    replays with what they hold by then; a number is a part of the graph for good.

    Args:
        params: parameters, changed in place.
        grads: gradients, clamped in place.
        exp_avgs: moving averages ``m``, changed in place.
        exp_avg_sqs: moving averages ``v``, changed in place.
        step: number of this step, from 1; as a tensor int64.
        lr: learning rate of this step: whatever decay there is has been applied; as a tensor float64.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        weight_decay: strength of the L2 penalty.
        clip_norm: largest magnitude of a gradient element; ``inf`` clips nothing.
        centered_variance: let ``v`` average the squared distance from ``m``.

    Raises:
        ValueError: the lists differ in length, a tensor stands twice in ``params``, ``step`` is less
            than 1 where that can be read, or a tensor for ``step`` or ``lr`` is of another kind.

    Source: Kingma and Ba, arXiv 1412.6980; the centered variance is equation 2 of Rengaraj et al.,
    doi 10.3390/computation11050095. The order of operations is that of
    ``pyro.optim.clipped_adam.ClippedAdam``.
    """
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "step": step, "lr": lr}
    for name, tensors in lists.items():
        if isinstance(tensors, list) and len(tensors) != len(params):
            check.fail(name, f"{len(params)} tensors as params has", str(len(tensors)))
    if len({id(p) for p in params}) != len(params):
        check.fail("params", "each tensor once", f"{len(params)} with repetitions")
    _check_number("step", step, params, torch.int64)
    _check_number("lr", lr, params, torch.float64)
    if not params:
        return
    _pick(params[0])(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        step=step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        centered_variance=centered_variance,
    )


def _check_number(
    name: str, number: float | Tensor | list[Tensor], params: list[Tensor], dtype: torch.dtype
) -> None:
    """Check a step count or a learning rate; a step count's value where reading it costs no wait."""
    if not isinstance(number, Tensor | list):
        if name == "step" and number < 1:
            check.fail(name, "an int from 1", repr(number))
        return
    for tensor in number if isinstance(number, list) else [number] * min(len(params), 1):
        check.kind(name, tensor, Tensor)
        if tensor.dtype != dtype or tensor.dim() != 0 or tensor.device != params[0].device:
            kind = str(dtype).removeprefix("torch.")
            check.fail(name, f"{kind} of shape () on {params[0].device}", check.describe(tensor))
        if name == "step" and check.values_are_readable(tensor):
            _check_number(name, int(tensor), params, dtype)


def _for_each(number: float | Tensor | list[Tensor], count: int) -> tuple[float, list[Tensor]]:
    """A number and no tensors, or tensors for each of ``count`` parameters and a number of no account."""
    if isinstance(number, Tensor):
        return 0, [number] * count
    return (0, number) if isinstance(number, list) else (number, [])


def _share_one_dense_layout(tensors: tuple[Tensor, ...]) -> bool:
    first = tensors[0]
    return all(t.stride() == first.stride() for t in tensors) and (
        first.is_contiguous() or torch.empty_like(first).stride() == first.stride()
    )


@torch.no_grad()
def _compute(
    library: Any,
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int | Tensor | list[Tensor],
    lr: float | Tensor | list[Tensor],
    centered_variance: bool = False,
    **settings: float,
) -> None:
    step_number, steps = _for_each(step, len(params))
    lr_number, lrs = _for_each(lr, len(params))
    given = list(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
    # The kernel walks memory; tensors laid out each in its own way go through copies.
    dense = [four if _share_one_dense_layout(four) else tuple(t.contiguous() for t in four) for four in given]
    library.clipped_adam(
        *(list(tensors) for tensors in zip(*dense, strict=True)),
        step=step_number,
        lr=lr_number,
        steps=steps,
        lrs=lrs,
        centered_variance=centered_variance,
        **settings,
    )
    for four, copies in zip(given, dense, strict=True):
        for tensor, copy in zip(four, copies, strict=True):
            if tensor is not copy:
                tensor.copy_(copy)


compiled.provide("clipped_adam", "clipped_adam", _compute, on_gpu=(torch.float32,))
