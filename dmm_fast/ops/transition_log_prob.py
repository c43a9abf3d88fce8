"""log p(z_{1:T}) of the prior chain: gated transition and Gaussian log-density, summed over time."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.gated_transition import check_transition_weights
from dmm_fast.ops.layout import fresh, particles, starts
from dmm_fast.reference import TransitionWeights

_pick = backend.reference_op("transition_log_prob", reference.transition_log_prob)


@in_float32
def transition_log_prob(z: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor) -> Tensor:
    """Sum over valid t of log N(z_t; gated_transition(z_{t-1})), in nats.

    Args:
        z: ``[..., B, T, Z]``.
        z_0: what precedes z_1; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the transition.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, sections 3 and 5.
    """
    B, T, Z = check.sequences("z", z)
    check_transition_weights(weights, z, "z", Z)
    check.like("z_0", z_0, z, "z")
    check.broadcastable("z_0", z_0, (*z.shape[:-2], Z), "[..., B, Z]")
    check.lengths(lengths, B, T, z.device)
    return _pick(z)(z, z_0, weights, lengths)


def _compute(library: Any, z: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor) -> Tensor:
    lead = z.shape[:-2]
    total: Tensor = library.transition_log_prob(
        particles(z, lead, 2), starts(z_0, lead, z.shape[-1]), list(weights), lengths
    )
    return total.reshape(lead)


def _fake(z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    return z.new_empty(z.shape[:2])


def _fake_backward(
    dout: Tensor, z: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    dz, dz_0 = fresh(z, z_0)
    return dz, dz_0, list(fresh(*weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, z_0, weights, lengths = inputs
    ctx.save_for_backward(z, z_0, lengths, *weights)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    z, z_0, lengths, *weights = ctx.saved_tensors
    return (*library.transition_log_prob_backward(dout, z, z_0, weights, lengths), None)


compiled.differentiate("transition_log_prob", "transition_log_prob", _fake, _fake_backward, _save, _backward)
compiled.provide("transition_log_prob", "transition_log_prob", _compute)
