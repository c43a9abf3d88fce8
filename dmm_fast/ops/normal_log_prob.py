"""Gaussian log-densities of whole sequences, masked and summed over time."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import as_bool, fresh, joint, particles

_pick = backend.reference_op("normal_log_prob", reference.normal_log_prob)
_pick_drawn = backend.reference_op("drawn_log_prob", reference.drawn_log_prob)


@in_float32
def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log N(value; loc, scale), in nats.

    Args:
        value: ``[..., B, T, D]``; this and the next two broadcast on the particle dimensions.
        loc: ``[..., B, T, D]``.
        scale: ``[..., B, T, D]``, positive where observed.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1: what is observed. None: all of it.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask that does not fit.
        TypeError: ``value`` is no floating-point tensor.
    """
    B, T, D = check.sequences("value", value)
    for name, tensor in (("loc", loc), ("scale", scale)):
        check.like(name, tensor, value, "value")
        check.trailing(name, tensor, (B, T, D), "[..., B, T, D]")
    check.leading("loc", loc, value.shape[:-3], 3, "value")
    lead = joint(value.shape[:-3], loc.shape[:-3])
    check.leading("scale", scale, lead, 3, "value and loc")
    check.lengths(lengths, B, T, value.device)
    check.observation_mask("mask", mask, value)
    return _pick(value)(value, loc, scale, lengths, mask)


@in_float32
def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """Sum over valid t of the log-density of ``z_t = loc_t + softplus(pre_scale_t) eps_t``, in nats.

    As a function of its noise the density is ``-eps^2 / 2 - log scale - log(2 pi) / 2``: the location
    cancels, nothing is divided by the scale, and the gradient is that of the reparameterised draw.

    Args:
        eps: ``[..., B, T, Z]``.
        pre_scale: of the shape of ``eps``.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``eps`` is no floating-point tensor.
    """
    B, T, _ = check.sequences("eps", eps)
    check.like("pre_scale", pre_scale, eps, "eps")
    check.shape("pre_scale", pre_scale, eps.shape)
    check.lengths(lengths, B, T, eps.device)
    return _pick_drawn(eps)(eps, pre_scale, lengths)


def _compute(
    library: Any, value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    given = (value, loc, scale)
    lead = joint(*(tensor.shape[:-2] for tensor in given))
    total: Tensor = library.normal_log_prob(
        *(particles(tensor, lead, 2) for tensor in given), lengths, as_bool(mask)
    )
    return total.reshape(lead)


def _fake(value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None) -> Tensor:
    return value.new_empty(value.shape[:2])


def _fake_backward(
    dout: Tensor, value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    return fresh(value, loc, scale)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    grads = library.normal_log_prob_backward(dout, *ctx.saved_tensors)
    return (*grads, None, None)


def _compute_drawn(library: Any, eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    lead = eps.shape[:-2]
    total: Tensor = library.drawn_log_prob(particles(eps, lead, 2), particles(pre_scale, lead, 2), lengths)
    return total.reshape(lead)


def _fake_drawn(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    return eps.new_empty(eps.shape[:2])


def _fake_drawn_backward(dout: Tensor, eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return fresh(eps, pre_scale)


def _backward_drawn(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    return (*library.drawn_log_prob_backward(dout, *ctx.saved_tensors), None)


compiled.differentiate("normal_log_prob", "normal_log_prob", _fake, _fake_backward, _save, _backward)
compiled.differentiate(
    "normal_log_prob", "drawn_log_prob", _fake_drawn, _fake_drawn_backward, _save, _backward_drawn
)
compiled.provide("normal_log_prob", "normal_log_prob", _compute)
compiled.provide("normal_log_prob", "drawn_log_prob", _compute_drawn)
