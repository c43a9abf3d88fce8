"""NADE emissions: features that depend on one another, in a given order."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import NadeEmitterWeights


def nade_emission_log_prob(
    x: Tensor, z: Tensor, weights: NadeEmitterWeights, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log p(x_t | z_t) under a NADE, in nats.

    With ``h`` the emitter's second hidden layer, ``b = W_out h + b_out`` and ``a_1 = W_state h + b_state``,
    the features are processed in order: ``p(x_d = 1 | x_{<d}, z) = sigmoid(b_d + w_read[d] . sigmoid(a_d))``
    and ``a_{d+1} = a_d + x_d w_write[d]``.

    A missing feature has no term and leaves the state unchanged. The result is a normalised density of the
    observed features; it is their marginal if the missing features are last in the order, and otherwise not.

    Args:
        x: ``[..., B, T, D]``, 0 or 1; broadcasts with ``z`` on the particle dimensions, so that ``[B, T, D]``
            is shared by all particles. Unobserved entries may be NaN.
        z: ``[..., B, T, Z]``.
        weights: weights of the NADE emitter.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1, 1 at observed entries. None: all observed.

    Returns:
        ``[..., B]``. Its gradient by ``x`` is the derivative of the formula.

    Raises:
        ValueError: a shape, dtype, device, length or mask is wrong.
        TypeError: ``z`` or ``weights`` has the wrong type.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011;
    arXiv 1609.09869, table 4 (DMM-NADE).
    """
    result: Tensor = call("nade_emission_log_prob", x, z, weights, lengths, mask)
    return result


def nade_draw(u: Tensor, logits: Tensor, state: Tensor, w_read: Tensor, w_write: Tensor) -> Tensor:
    """A draw from a NADE: for each d in turn, 1 if ``u_d < sigmoid(b_d + w_read[d] . sigmoid(a_d))``, else 0.

    The state follows ``a_{d+1} = a_d + x_d w_write[d]``. A draw has no gradient.

    Args:
        u: ``[..., D]``, uniform noise in ``[0, 1)``; broadcasts with ``logits``.
        logits: ``[..., D]``, the logits ``b``.
        state: ``[..., U]``, the initial state ``a_1``, with the leading dimensions of ``logits``.
        w_read: ``[D, U]``.
        w_write: ``[D, U]``.

    Returns:
        ``[..., D]``, 0 or 1, in the dtype of ``logits``.

    Raises:
        ValueError: a shape, dtype or device is wrong.
        TypeError: an argument has the wrong type.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011.
    """
    result: Tensor = call("nade_draw", u, logits, state, w_read, w_write)
    return result
