"""p(z_t | z_{t-1}) for one step: the gated transition."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import fresh, single_steps
from dmm_fast.reference import TransitionWeights

_pick = backend.reference_op("gated_transition", reference.gated_transition)


def check_transition_weights(
    weights: TransitionWeights, like: Tensor, like_name: str, Z: int
) -> dict[str, int]:
    """Check the weights of a gated transition for ``Z`` latents and return all sizes by letter."""
    check.kind("weights", weights, TransitionWeights)
    spec = "GZ G ZG Z RZ R ZR Z ZZ Z ZZ Z"
    return check.weights(weights, spec, like, like_name, Z=Z)


@in_float32
def gated_transition(z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, Tensor]:
    r"""``loc, scale`` of p(z_t | z_{t-1}).

    ``gate = sigmoid(MLP_gate(z))``, ``mean = MLP_mean(z)`` with one ReLU layer each,
    ``loc = (1 - gate) (W_loc z + b_loc) + gate mean``,
    ``scale = softplus(W_scale relu(mean) + b_scale)``.

    Args:
        z_prev: ``[..., Z]``.
        weights: of the transition.

    Returns:
        ``loc, scale``, each ``[..., Z]``.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
        TypeError: ``z_prev`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """
    check.floating("z_prev", z_prev)
    check.trailing("z_prev", z_prev, (-1,), "[..., Z]")
    check_transition_weights(weights, z_prev, "z_prev", z_prev.shape[-1])
    return _pick(z_prev)(z_prev, weights)


def _compute(library: Any, z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, Tensor]:
    steps = single_steps(z_prev, z_prev.shape[:-1])
    loc, scale = library.gated_transition(steps, list(weights))
    return loc.reshape(z_prev.shape), scale.reshape(z_prev.shape)


def _fake(z_prev: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    return fresh(z_prev, z_prev)


def _fake_backward(
    dloc: Tensor, dscale: Tensor, z_prev: Tensor, weights: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    return fresh(z_prev)[0], list(fresh(*weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z_prev, weights = inputs
    ctx.save_for_backward(z_prev, *weights)


def _backward(library: Any, ctx: Any, dloc: Tensor, dscale: Tensor) -> tuple[Any, ...]:
    z_prev, *weights = ctx.saved_tensors
    return tuple(library.gated_transition_backward(dloc, dscale, z_prev, weights))


compiled.differentiate("gated_transition", "gated_transition", _fake, _fake_backward, _save, _backward)
compiled.provide("gated_transition", "gated_transition", _compute)
