"""q(z_t | z_{t-1}, x_{t:T}) at given z_{t-1}: one step, and the log-density of a whole chain."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import fresh, joint, particles, single_steps, starts
from dmm_fast.reference import CombinerWeights

_pick_step = backend.reference_op("combiner", reference.combiner)
_pick_log_prob = backend.reference_op("combiner_log_prob", reference.combiner_log_prob)


def check_combiner_weights(weights: CombinerWeights, like: Tensor, like_name: str, Z: int) -> dict[str, int]:
    """Check the weights of a combiner for ``Z`` latents and return all sizes by letter."""
    check.kind("weights", weights, CombinerWeights)
    return check.weights(weights, "HZ H ZH Z ZH Z", like, like_name, Z=Z)


@in_float32
def combiner(z_prev: Tensor, h: Tensor, weights: CombinerWeights) -> tuple[Tensor, Tensor]:
    r"""``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}).

    ``c = (tanh(W_z z_{t-1} + b_z) + h) / 2``, ``loc = W_loc c + b_loc``,
    ``scale = softplus(W_scale c + b_scale)``.

    Args:
        z_prev: ``[..., Z]``.
        h: ``[..., H]``; leading dimensions broadcast with those of ``z_prev``.
        weights: of the combiner.

    Returns:
        ``loc, scale``, each ``[..., Z]``.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
        TypeError: ``z_prev`` or ``weights`` is of another kind.

    Source: ``Combiner`` in Pyro's ``examples/dmm.py``.
    """
    check.floating("z_prev", z_prev)
    check.trailing("z_prev", z_prev, (-1,), "[..., Z]")
    sizes = check_combiner_weights(weights, z_prev, "z_prev", z_prev.shape[-1])
    check.like("h", h, z_prev, "z_prev")
    check.trailing("h", h, (sizes["H"],), "[..., H]")
    check.leading("h", h, z_prev.shape[:-1], 1, "z_prev")
    return _pick_step(z_prev)(z_prev, h, weights)


@in_float32
def combiner_log_prob(
    z: Tensor, h: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> Tensor:
    """Sum over valid t of log q(z_t | z_{t-1}, x_{t:T}) in nats, at any ``z``.

    Args:
        z: ``[..., B, T, Z]``; broadcasts with ``h`` on the particle dimensions.
        h: ``[..., B, T, H]``.
        z_q_0: what precedes z_1; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the combiner.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.
    """
    B, T, Z = check.sequences("z", z)
    sizes = check_combiner_weights(weights, z, "z", Z)
    check.like("h", h, z, "z")
    check.trailing("h", h, (B, T, sizes["H"]), "[..., B, T, H]")
    check.leading("h", h, z.shape[:-3], 3, "z")
    check.like("z_q_0", z_q_0, z, "z")
    lead = joint(z.shape[:-2], h.shape[:-2])
    check.broadcastable("z_q_0", z_q_0, (*lead, Z), "[..., B, Z]")
    check.lengths(lengths, B, T, z.device)
    return _pick_log_prob(z)(z, h, z_q_0, weights, lengths)


def _compute_step(library: Any, z_prev: Tensor, h: Tensor, weights: CombinerWeights) -> tuple[Tensor, Tensor]:
    lead = joint(z_prev.shape[:-1], h.shape[:-1])
    loc, scale = library.combiner(single_steps(z_prev, lead), single_steps(h, lead), list(weights))
    shape = (*lead, z_prev.shape[-1])
    return loc.reshape(shape), scale.reshape(shape)


def _fake_step(z_prev: Tensor, h: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    return fresh(z_prev, z_prev)


def _fake_step_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, h: Tensor, weights: list[Tensor]
) -> tuple[Any, ...]:
    return *fresh(z_prev, h), list(fresh(*weights))


def _save_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z_prev, h, weights = inputs
    ctx.save_for_backward(z_prev, h, *weights)


def _backward_step(library: Any, ctx: Any, dloc: Tensor, dscale: Tensor) -> tuple[Any, ...]:
    z_prev, h, *weights = ctx.saved_tensors
    return tuple(library.combiner_backward(dloc, dscale, z_prev, h, weights))


def _compute_log_prob(
    library: Any, z: Tensor, h: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> Tensor:
    lead = joint(z.shape[:-2], h.shape[:-2])
    start = starts(z_q_0, lead, z.shape[-1])
    total: Tensor = library.combiner_log_prob(
        particles(z, lead, 2), particles(h, lead, 2), start, list(weights), lengths
    )
    return total.reshape(lead)


def _fake_log_prob(z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor) -> Tensor:
    return z.new_empty(z.shape[:2])


def _fake_log_prob_backward(
    dout: Tensor, z: Tensor, h: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor
) -> tuple[Any, ...]:
    return *fresh(z, h, z_q_0), list(fresh(*weights))


def _save_log_prob(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, h, z_q_0, weights, lengths = inputs
    ctx.save_for_backward(z, h, z_q_0, lengths, *weights)


def _backward_log_prob(library: Any, ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    z, h, z_q_0, lengths, *weights = ctx.saved_tensors
    grads = library.combiner_log_prob_backward(dout, z, h, z_q_0, weights, lengths)
    return (*grads, None)


compiled.differentiate("combiner", "combiner", _fake_step, _fake_step_backward, _save_step, _backward_step)
compiled.differentiate(
    "combiner",
    "combiner_log_prob",
    _fake_log_prob,
    _fake_log_prob_backward,
    _save_log_prob,
    _backward_log_prob,
)
compiled.provide("combiner", "combiner", _compute_step)
compiled.provide("combiner", "combiner_log_prob", _compute_log_prob)
