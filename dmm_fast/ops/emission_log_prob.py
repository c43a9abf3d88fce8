"""log p(x_{1:T} | z_{1:T}): emitter and log-density, summed over what is observed."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.emitter import check_emitter_weights
from dmm_fast.ops.layout import as_bool, fresh, joint, particles
from dmm_fast.reference import EmitterWeights, GaussianEmitterWeights

_pick = backend.reference_op("emission_log_prob", reference.emission_log_prob)
_pick_gaussian = backend.reference_op("gaussian_emission_log_prob", reference.gaussian_emission_log_prob)


def _check(
    x: Tensor,
    z: Tensor,
    weights: EmitterWeights | GaussianEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None,
    kind: type,
) -> None:
    B, T, Z = check.sequences("z", z)
    sizes = check_emitter_weights(weights, kind, z, "z", Z)
    check.like("x", x, z, "z")
    check.trailing("x", x, (B, T, sizes["D"]), "[..., B, T, D]")
    check.leading("x", x, z.shape[:-3], 3, "z")
    check.lengths(lengths, B, T, z.device)
    check.observation_mask("mask", mask, x)


@in_float32
def emission_log_prob(
    x: Tensor, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over what is observed of log Bernoulli(x_t; logits = emitter(z_t)), in nats.

    Args:
        x: ``[..., B, T, D]``; broadcasts with ``z`` on the particle dimensions, so that ``[B, T, D]`` is for
            all particles. May hold NaN where not observed.
        z: ``[..., B, T, Z]``.
        weights: of the Bernoulli emitter.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1: what is observed. None: all of it.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 3; ``Emitter`` in Pyro's ``examples/dmm.py``.
    """
    _check(x, z, weights, lengths, mask, EmitterWeights)
    return _pick(z)(x, z, weights, lengths, mask)


@in_float32
def gaussian_emission_log_prob(
    x: Tensor,
    z: Tensor,
    weights: GaussianEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Sum over what is observed of log N(x_t; loc(z_t), scale(z_t)), in nats.

    Arguments, return value and errors are those of :func:`emission_log_prob`.
    """
    _check(x, z, weights, lengths, mask, GaussianEmitterWeights)
    return _pick_gaussian(z)(x, z, weights, lengths, mask)


def _compute(
    library: Any,
    x: Tensor,
    z: Tensor,
    weights: EmitterWeights | GaussianEmitterWeights,
    lengths: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    lead = joint(x.shape[:-2], z.shape[:-2])
    total: Tensor = library.emission_log_prob(
        particles(x, lead, 2), particles(z, lead, 2), list(weights), lengths, as_bool(mask)
    )
    return total.reshape(lead)


def _fake(x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None) -> Tensor:
    return z.new_empty(z.shape[:2])


def _fake_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
    mask: Tensor | None,
    with_dx: bool,
) -> tuple[Any, ...]:
    return x.new_empty(x.shape if with_dx else (0,)), *fresh(z), list(fresh(*weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, z, weights, lengths, mask = inputs
    ctx.save_for_backward(x, z, lengths, mask, *weights)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    x, z, lengths, mask, *weights = ctx.saved_tensors
    with_dx = ctx.needs_input_grad[0]
    dx, dz, dweights = library.emission_log_prob_backward(dout, x, z, weights, lengths, mask, with_dx)
    return dx if with_dx else None, dz, dweights, None, None


compiled.differentiate(
    "emission_log_prob",
    "emission_log_prob",
    _fake,
    _fake_backward,
    _save,
    _backward,
    public="emission_log_prob or gaussian_emission_log_prob",
)
compiled.provide("emission_log_prob", "emission_log_prob", _compute)
compiled.provide("emission_log_prob", "gaussian_emission_log_prob", _compute)
