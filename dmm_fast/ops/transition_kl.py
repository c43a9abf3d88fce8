"""The analytic KL from the posterior's steps to the prior's, summed over time."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.gated_transition import check_transition_weights
from dmm_fast.ops.layout import fresh, particles, starts
from dmm_fast.reference import TransitionWeights

_pick = backend.reference_op("transition_kl", reference.transition_kl)


@in_float32
def transition_kl(
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: TransitionWeights,
    lengths: Tensor,
) -> Tensor:
    """Sum over valid t of KL(N(loc_t, softplus(pre_scale_t)) || p(z_t | z_{t-1})), in nats.

    With ``z`` drawn from the chain whose steps ``loc`` and ``pre_scale`` describe, the expectation
    over ``z`` is KL(q(z_{1:T}) || p(z_{1:T})).

    Args:
        z: ``[..., B, T, Z]``.
        loc: of the shape of ``z``.
        pre_scale: of the shape of ``z``.
        z_0: what precedes z_1 in the prior; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the transition.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 4, the factorised bound.
    """
    B, T, Z = check.sequences("z", z)
    for name, tensor in (("loc", loc), ("pre_scale", pre_scale)):
        check.like(name, tensor, z, "z")
        check.shape(name, tensor, z.shape)
    check_transition_weights(weights, z, "z", Z)
    check.like("z_0", z_0, z, "z")
    check.broadcastable("z_0", z_0, (*z.shape[:-2], Z), "[..., B, Z]")
    check.lengths(lengths, B, T, z.device)
    return _pick(z)(z, loc, pre_scale, z_0, weights, lengths)


def _compute(
    library: Any,
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: TransitionWeights,
    lengths: Tensor,
) -> Tensor:
    lead = z.shape[:-2]
    chain = (particles(tensor, lead, 2) for tensor in (z, loc, pre_scale))
    total: Tensor = library.transition_kl(*chain, starts(z_0, lead, z.shape[-1]), list(weights), lengths)
    return total.reshape(lead)


def _fake(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> Tensor:
    return z.new_empty(z.shape[:2])


def _fake_backward(
    dout: Tensor,
    z: Tensor,
    loc: Tensor,
    pre_scale: Tensor,
    z_0: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Any, ...]:
    return *fresh(z, loc, pre_scale, z_0), list(fresh(*weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, loc, pre_scale, z_0, weights, lengths = inputs
    ctx.save_for_backward(z, loc, pre_scale, z_0, lengths, *weights)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    z, loc, pre_scale, z_0, lengths, *weights = ctx.saved_tensors
    grads = library.transition_kl_backward(dout, z, loc, pre_scale, z_0, weights, lengths)
    return (*grads, None)


compiled.differentiate("transition_kl", "transition_kl", _fake, _fake_backward, _save, _backward)
compiled.provide("transition_kl", "transition_kl", _compute)
