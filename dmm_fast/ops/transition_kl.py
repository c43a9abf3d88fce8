"""The analytic KL from the posterior's steps to the prior's, summed over time."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import TransitionWeights


def transition_kl(
    z: Tensor, loc: Tensor, pre_scale: Tensor, z_0: Tensor, weights: TransitionWeights, lengths: Tensor
) -> Tensor:
    """Sum over valid t of KL(N(loc_t, softplus(pre_scale_t)) || p(z_t | z_{t-1})), in nats.

    If ``z`` is drawn from the chain with steps ``N(loc_t, softplus(pre_scale_t))``, the expectation over
    ``z`` is KL(q(z_{1:T}) || p(z_{1:T})).

    Args:
        z: ``[..., B, T, Z]``.
        loc: same shape as ``z``.
        pre_scale: same shape as ``z``.
        z_0: the initial state of the prior, of any shape that broadcasts to ``[..., B, Z]``.
        weights: weights of the transition.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, section 4, the factorised bound.
    """
    result: Tensor = call("transition_kl", z, loc, pre_scale, z_0, weights, lengths)
    return result
