"""p(z_t | z_{t-1}, inputs_t) for one step: the gated transition."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import TransitionWeights


def gated_transition(z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, Tensor]:
    r"""``loc, scale`` of p(z_t | z_{t-1}), which may depend on further inputs of its step too.

    ``gate = sigmoid(MLP_gate(z))``, ``mean = MLP_mean(z)`` with one ReLU layer each,
    ``loc = (1 - gate) (W_loc z + b_loc) + gate mean``,
    ``scale = softplus(W_scale relu(mean) + b_scale)``, ``z`` being what is given.

    Args:
        z_prev: ``[..., I]``: z_{t-1} and, where ``I > Z``, the further inputs behind it.
        weights: of the transition.

    Returns:
        ``loc, scale``, each ``[..., Z]``.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
        TypeError: ``z_prev`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """
    result: tuple[Tensor, Tensor] = call("gated_transition", z_prev, weights)
    return result
