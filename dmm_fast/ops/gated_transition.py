"""p(z_t | z_{t-1}, inputs_t) for one step: the gated transition."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import TransitionWeights


def gated_transition(z_prev: Tensor, weights: TransitionWeights) -> tuple[Tensor, Tensor]:
    r"""``loc, scale`` of p(z_t | z_{t-1}, inputs_t), with optional further inputs of the step.

    ``gate = sigmoid(MLP_gate(z))``, ``mean = MLP_mean(z)`` with one ReLU layer each,
    ``loc = (1 - gate) (W_loc z + b_loc) + gate mean``,
    ``scale = softplus(W_scale relu(mean) + b_scale)``, where ``z`` is ``z_prev``.

    Args:
        z_prev: ``[..., I]``: z_{t-1}, followed by the further inputs if ``I > Z``.
        weights: weights of the transition.

    Returns:
        ``loc, scale``, each ``[..., Z]``.

    Raises:
        ValueError: a shape, dtype or device is wrong.
        TypeError: ``z_prev`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, section 5; ``GatedTransition`` in Pyro's ``examples/dmm.py``.
    """
    result: tuple[Tensor, Tensor] = call("gated_transition", z_prev, weights)
    return result
