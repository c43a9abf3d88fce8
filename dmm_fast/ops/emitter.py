"""p(x_t | z_t) for given z_t: the emitters."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import fresh, single_steps
from dmm_fast.reference import EmitterWeights, GaussianEmitterWeights

_pick = backend.reference_op("emitter", reference.emitter)
_pick_gaussian = backend.reference_op("gaussian_emitter", reference.gaussian_emitter)


def check_emitter_weights(
    weights: EmitterWeights | GaussianEmitterWeights, kind: type, like: Tensor, like_name: str, Z: int
) -> dict[str, int]:
    """Check the weights of an emitter for ``Z`` latents and return all sizes by letter."""
    check.kind("weights", weights, kind)
    heads = (len(weights) - 4) // 2 if isinstance(weights, tuple) else 1
    return check.weights(weights, "EZ E EE E" + heads * " DE D", like, like_name, Z=Z)


def _check(z: Tensor, weights: EmitterWeights | GaussianEmitterWeights, kind: type) -> None:
    check.floating("z", z)
    check.trailing("z", z, (-1,), "[..., Z]")
    check_emitter_weights(weights, kind, z, "z", z.shape[-1])


@in_float32
def emitter(z: Tensor, weights: EmitterWeights) -> Tensor:
    """``logits`` of p(x_t | z_t): two ReLU layers and a linear one.

    Args:
        z: ``[..., Z]``.
        weights: of the Bernoulli emitter.

    Returns:
        ``[..., D]``.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
        TypeError: ``z`` or ``weights`` is of another kind.

    Source: ``Emitter`` in Pyro's ``examples/dmm.py``, before its sigmoid.
    """
    _check(z, weights, EmitterWeights)
    return _pick(z)(z, weights)


@in_float32
def gaussian_emitter(z: Tensor, weights: GaussianEmitterWeights) -> tuple[Tensor, Tensor]:
    """``loc, pre_scale`` of a Gaussian p(x_t | z_t), each ``[..., D]``; ``scale = softplus(pre_scale)``.

    Arguments and errors are those of :func:`emitter`.
    """
    _check(z, weights, GaussianEmitterWeights)
    return _pick_gaussian(z)(z, weights)


def _compute_outputs(
    library: Any, z: Tensor, weights: EmitterWeights | GaussianEmitterWeights
) -> list[Tensor]:
    lead = z.shape[:-1]
    outputs = library.emitter(single_steps(z, lead), list(weights))
    return [out.reshape(*lead, out.shape[-1]) for out in outputs]


def _compute(library: Any, z: Tensor, weights: EmitterWeights) -> Tensor:
    return _compute_outputs(library, z, weights)[0]


def _compute_gaussian(library: Any, z: Tensor, weights: GaussianEmitterWeights) -> tuple[Tensor, Tensor]:
    loc, pre_scale = _compute_outputs(library, z, weights)
    return loc, pre_scale


def _fake(z: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [z.new_empty(z.shape[0], w_out.shape[0]) for w_out in weights[4::2]]


def _fake_backward(dout: list[Tensor], z: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return fresh(z)[0], list(fresh(*weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    z, weights = inputs
    ctx.save_for_backward(z, *weights)


def _backward(library: Any, ctx: Any, dout: list[Tensor]) -> tuple[Any, ...]:
    z, *weights = ctx.saved_tensors
    return tuple(library.emitter_backward(dout, z, weights))


compiled.differentiate(
    "emitter",
    "emitter",
    _fake,
    _fake_backward,
    _save,
    _backward,
    public="emitter or gaussian_emitter",
)
compiled.provide("emitter", "emitter", _compute)
compiled.provide("emitter", "gaussian_emitter", _compute_gaussian)
