"""``clipped_adam``: one step of Adam with clipped gradients, for any number of tensors at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import _backends, _registry
from dmm_fast.ops._ranges import ABOVE_ZERO, COUNT, COUNT_SO_FAR, FINITE, RANGES, Range, number
from dmm_fast.ops._tensor_lists import are_contiguous, check_alike, check_apart


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
    lrd: float | None = None,
) -> None:
    r"""Update every tensor of ``params`` in place.

    For each parameter ``p`` with gradient ``g`` and moving averages ``m``, ``v`` of the same shape::

        g <- clamp(g, -clip_norm, clip_norm)
        d  = g + weight_decay * p
        m <- beta1 * m + (1 - beta1) * d
        v <- beta2 * v + (1 - beta2) * e^2,    e = d - m if centered_variance else d
        p <- p - lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(v) + eps)

    Clamped gradients are written back to ``grads``, without the weight decay. The four lists are parallel,
    with tensors of any shapes, all of one floating dtype and on one device. No two tensors may share memory,
    except for gradients with each other.

    ``step`` and ``lr`` are numbers, or tensors of no dimension on the device of the parameters: one for all
    parameters, or a list with one for each. Tensors are read on the device when the step runs, so that each
    replay of a CUDA graph uses their current values; a number becomes a constant of the graph.

    With ``lrd``, both are tensors with the values before this step, which are first updated in place:
    ``step += 1`` and ``lr *= lrd``, once for a tensor shared by several parameters.

    Args:
        params: parameters, changed in place.
        grads: gradients, clamped in place.
        exp_avgs: moving averages ``m``, changed in place.
        exp_avg_sqs: moving averages ``v``, changed in place.
        step: number of this step, from 1; a tensor is int64. With ``lrd``, the number of steps before this
            one.
        lr: learning rate of this step, finite, after any decay; a tensor is float64. With ``lrd``, the rate
            before its decay.
        beta1: decay of ``m``, in [0, 1).
        beta2: decay of ``v``, in [0, 1).
        eps: added to the denominator, finite and at least 0.
        weight_decay: weight of the L2 penalty, finite and at least 0.
        clip_norm: largest magnitude of a gradient element, above 0; ``inf``: no clipping.
        centered_variance: let ``v`` average the squared deviation of ``d`` from ``m``.
        lrd: factor applied to the learning rate, finite and above 0. None: ``step`` and ``lr`` are those of
            this step and are not changed.

    Raises:
        ValueError: the lists or their tensors do not match, a tensor occurs twice in ``params``, tensors
            share memory, a readable number is out of range, or a tensor for ``step`` or ``lr`` has the wrong
            shape, dtype or device.
        TypeError: an argument has the wrong type.

    Source: Kingma and Ba, arXiv 1412.6980; the centered variance is equation 2 of Rengaraj et al.,
    doi 10.3390/computation11050095. The order of operations is that of
    ``pyro.optim.clipped_adam.ClippedAdam``.
    """
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    check_alike(lists)
    if len(set(map(id, params))) != len(params):
        check.fail("params", "each tensor once", f"{len(params)} with repetitions")
    if lrd is not None:
        lrd = number("lrd", lrd, ABOVE_ZERO)
        for name, changed in (("step", step), ("lr", lr)):
            if not isinstance(changed, Tensor | list):
                check.fail(name, "tensors, which a step with lrd changes", check.describe(changed), TypeError)
    step = _number_or_tensors("step", step, params, torch.int64, COUNT if lrd is None else COUNT_SO_FAR)
    lr = _number_or_tensors("lr", lr, params, torch.float64, FINITE)
    given = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "clip_norm": clip_norm}
    settings = {name: number(name, value, RANGES[name]) for name, value in given.items()}
    if not isinstance(centered_variance, bool):
        check.fail("centered_variance", "a bool", check.describe(centered_variance), TypeError)
    if not params:
        return
    # A gradient shared by two parameters is clamped twice, which has the same result as once.
    check_apart(lists, may_meet="grads")
    _backends.implementation("clipped_adam", params[0])(
        *lists.values(), step=step, lr=lr, **settings, centered_variance=centered_variance, lrd=lrd
    )


def _number_or_tensors(
    name: str, given: Any, params: Sequence[Tensor], dtype: torch.dtype, within: Range
) -> Any:
    """Check a step count or a learning rate, and return it; a tensor's value only if it is on a CPU."""
    if not isinstance(given, Tensor | list):
        return number(name, given, within)
    if isinstance(given, list) and len(given) != len(params):
        check.fail(name, f"{len(params)} tensors as params has", str(len(given)))
    for tensor in given if isinstance(given, list) else [given] * min(len(params), 1):
        check.kind(name, tensor, Tensor)
        if tensor.dtype != dtype or tensor.dim() != 0 or tensor.device != params[0].device:
            kind = str(dtype).removeprefix("torch.")
            check.fail(name, f"{kind} of shape () on {params[0].device}", check.describe(tensor))
        if name == "step" and check.values_are_readable(tensor):
            number(name, int(tensor), within)
    return given


def _for_each(number: float | Tensor | list[Tensor], count: int) -> tuple[float, list[Tensor]]:
    """A number and no tensors, or one tensor for each of ``count`` parameters and an unused number."""
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
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int | Tensor | list[Tensor],
    lr: float | Tensor | list[Tensor],
    centered_variance: bool = False,
    lrd: float | None = None,
    **settings: float,
) -> None:
    step_number, steps = _for_each(step, len(params))
    lr_number, lrs = _for_each(lr, len(params))
    given: list[tuple[Tensor, ...]] = list(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True))
    dense = given
    # The kernel iterates over memory, so tensors with different layouts have to be copied.
    if not are_contiguous([*params, *grads, *exp_avgs, *exp_avg_sqs]):
        dense = [f if _share_one_dense_layout(f) else tuple(t.contiguous() for t in f) for f in given]
    torch.ops.dmm_fast.clipped_adam(
        *(list(tensors) for tensors in zip(*dense, strict=True)),
        step=step_number,
        lr=lr_number,
        steps=steps,
        lrs=lrs,
        lrd=1.0 if lrd is None else lrd,
        advance=lrd is not None,
        centered_variance=centered_variance,
        **settings,
        backend=_backends.requested("clipped_adam") or "",
    )
    if dense is given:
        return
    for four, copies in zip(given, dense, strict=True):
        for tensor, copy in zip(four, copies, strict=True):
            if tensor is not copy:
                tensor.copy_(copy)


_backends.register("clipped_adam", "reference", reference.clipped_adam)
_registry.register_compiled("clipped_adam", "clipped_adam", _compute)
