"""p(x_t | z_t) for given z_t: the emitters."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import EmitterWeights, GaussianEmitterWeights


def emitter(z: Tensor, weights: EmitterWeights) -> Tensor:
    """``logits`` of p(x_t | z_t): two ReLU layers and a linear layer.

    Args:
        z: ``[..., Z]``.
        weights: weights of the Bernoulli emitter.

    Returns:
        ``[..., D]``.

    Raises:
        ValueError: a shape, dtype or device is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.

    Source: ``Emitter`` in Pyro's ``examples/dmm.py``, before its sigmoid.
    """
    result: Tensor = call("emitter", z, weights)
    return result


def gaussian_emitter(z: Tensor, weights: GaussianEmitterWeights) -> tuple[Tensor, Tensor]:
    """``loc, pre_scale`` of a Gaussian p(x_t | z_t), each ``[..., D]``; ``scale = softplus(pre_scale)``.

    Arguments and errors are those of :func:`emitter`.
    """
    result: tuple[Tensor, Tensor] = call("gaussian_emitter", z, weights)
    return result
