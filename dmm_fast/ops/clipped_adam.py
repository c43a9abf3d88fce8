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
    step: int,
    lr: float,
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

    Args:
        params: parameters, changed in place.
        grads: gradients, clamped in place.
        exp_avgs: moving averages ``m``, changed in place.
        exp_avg_sqs: moving averages ``v``, changed in place.
        step: number of this step, from 1.
        lr: learning rate of this step: whatever decay there is has been applied.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        weight_decay: strength of the L2 penalty.
        clip_norm: largest magnitude of a gradient element; ``inf`` clips nothing.
        centered_variance: let ``v`` average the squared distance from ``m``.

    Raises:
        ValueError: the lists differ in length, or ``step`` is less than 1.

    Source: Kingma and Ba, arXiv 1412.6980; the centered variance is equation 2 of Rengaraj et al.,
    doi 10.3390/computation11050095. The order of operations is that of
    ``pyro.optim.clipped_adam.ClippedAdam``.
    """
    for name, tensors in (("grads", grads), ("exp_avgs", exp_avgs), ("exp_avg_sqs", exp_avg_sqs)):
        if len(tensors) != len(params):
            check.fail(name, f"{len(params)} tensors as params has", str(len(tensors)))
    if step < 1:
        check.fail("step", "an int from 1", repr(step))
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
    centered_variance: bool = False,
    **settings: float,
) -> None:
    given = list(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
    # The kernel walks memory; tensors laid out each in its own way go through copies.
    dense = [four if _share_one_dense_layout(four) else tuple(t.contiguous() for t in four) for four in given]
    library.clipped_adam(
        *(list(tensors) for tensors in zip(*dense, strict=True)),
        centered_variance=centered_variance,
        **settings,
    )
    for four, copies in zip(given, dense, strict=True):
        for tensor, copy in zip(four, copies, strict=True):
            if tensor is not copy:
                tensor.copy_(copy)


compiled.provide("clipped_adam", "clipped_adam", _compute)
