"""log p(z_{1:T}) of the prior chain: gated transition and Gaussian log-density, summed over time."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import TransitionWeights


def transition_log_prob(z: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor) -> Tensor:
    """Sum over valid t of log N(z_t; gated_transition(z_{t-1})), in nats.

    Args:
        z: ``[..., B, T, Z]``.
        z_0: the initial state before z_1, of any shape that broadcasts to ``[..., B, Z]``.
        weights: weights of the transition.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, sections 3 and 5.
    """
    result: Tensor = call("transition_log_prob", z, z_0, weights, lengths)
    return result
