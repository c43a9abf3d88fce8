"""Bernoulli log-probabilities of whole sequences, masked and summed over time."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import as_bool, fresh, joint, particles

_pick = backend.reference_op("bernoulli_log_prob", reference.bernoulli_log_prob)


@in_float32
def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum over what is observed of log Bernoulli(x; sigmoid(logits)), in nats.

    Args:
        x: ``[..., B, T, D]``, 0 or 1 where observed; broadcasts with ``logits`` on the particles.
        logits: ``[..., B, T, D]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1: what is observed. None: all of it.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask that does not fit.
        TypeError: ``logits`` is no floating-point tensor.
    """
    B, T, D = check.sequences("logits", logits)
    check.like("x", x, logits, "logits")
    check.trailing("x", x, (B, T, D), "[..., B, T, D]")
    check.leading("x", x, logits.shape[:-3], 3, "logits")
    check.lengths(lengths, B, T, logits.device)
    check.observation_mask("mask", mask, logits)
    return _pick(logits)(x, logits, lengths, mask)


def _compute(library: Any, x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    lead = joint(x.shape[:-2], logits.shape[:-2])
    total: Tensor = library.bernoulli_log_prob(
        particles(x, lead, 2), particles(logits, lead, 2), lengths, as_bool(mask)
    )
    return total.reshape(lead)


def _fake(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape[:2])


def _fake_backward(
    dout: Tensor, x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None
) -> tuple[Tensor, ...]:
    return fresh(x, logits)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    grads = library.bernoulli_log_prob_backward(dout, *ctx.saved_tensors)
    return (*grads, None, None)


compiled.differentiate("bernoulli_log_prob", "bernoulli_log_prob", _fake, _fake_backward, _save, _backward)
compiled.provide("bernoulli_log_prob", "bernoulli_log_prob", _compute)
