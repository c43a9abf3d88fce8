"""Drawing the prior chain z_{1:T}, forward in time."""

from torch import Tensor

from dmm_fast import check
from dmm_fast.ops._registry import call
from dmm_fast.reference import TransitionWeights


def transition_scan(
    eps: Tensor, z_0: Tensor, inputs: Tensor | None, weights: TransitionWeights, lengths: Tensor
) -> Tensor:
    r"""Draw ``z_t = loc + scale eps_t`` with ``loc, scale = gated_transition([z_{t-1}, inputs_t])``.

    There is no gradient: a backward pass through a compiled backend raises ``BackendError``;
    ``use_backend("reference")`` provides one.

    Args:
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_0: the initial state before z_1, of any shape that broadcasts to ``[..., B, Z]``.
        inputs: ``[..., B, T, X]``, further inputs of each step, such as controls; broadcasts with ``eps`` on
            the particle dimensions. None: no further inputs.
        weights: weights of the transition, with ``I = Z + X`` inputs.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z [..., B, T, Z]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``eps`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, sections 3 and 5.
    """
    if inputs is None:
        B, T, _ = check.sequences("eps", eps)
        inputs = eps.new_empty(B, T, 0)
    result: Tensor = call("transition_scan", eps, z_0, inputs, weights, lengths)
    return result
