"""q(z_t | z_{t-1}, x_{t:T}) at given z_{t-1}: one step, and the log-density of a whole chain."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import CombinerWeights


def combiner(z_prev: Tensor, h: Tensor, weights: CombinerWeights) -> tuple[Tensor, Tensor]:
    r"""``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}).

    ``c = (tanh(W_z z_{t-1} + b_z) + h) / 2``, ``loc = W_loc c + b_loc``,
    ``scale = softplus(W_scale c + b_scale)``.

    Args:
        z_prev: ``[..., Z]``.
        h: ``[..., H]``; leading dimensions broadcast with those of ``z_prev``.
        weights: weights of the combiner.

    Returns:
        ``loc, scale``, each ``[..., Z]``.

    Raises:
        ValueError: a shape, dtype or device is wrong.
        TypeError: ``z_prev`` or ``weights`` has the wrong type.

    Source: ``Combiner`` in Pyro's ``examples/dmm.py``.
    """
    result: tuple[Tensor, Tensor] = call("combiner", z_prev, h, weights)
    return result


def combiner_log_prob(
    z: Tensor, h: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> Tensor:
    """Sum over valid t of log q(z_t | z_{t-1}, x_{t:T}) in nats, at any ``z``.

    Args:
        z: ``[..., B, T, Z]``; broadcasts with ``h`` on the particle dimensions.
        h: ``[..., B, T, H]``.
        z_q_0: the initial state before z_1, of any shape that broadcasts to ``[..., B, Z]``.
        weights: weights of the combiner.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.
    """
    result: Tensor = call("combiner_log_prob", z, h, z_q_0, weights, lengths)
    return result
