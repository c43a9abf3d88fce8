"""Gaussian log-densities of whole sequences, masked and summed over time."""

from torch import Tensor

from dmm_fast.ops._registry import call


def normal_log_prob(
    value: Tensor, loc: Tensor, scale: Tensor, lengths: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Sum over observed entries of log N(value; loc, scale), in nats.

    Args:
        value: ``[..., B, T, D]``; value, loc and scale broadcast on the particle dimensions.
        loc: ``[..., B, T, D]``.
        scale: ``[..., B, T, D]``, positive where observed.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1, 1 at observed entries. None: all observed.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask is wrong.
        TypeError: ``loc`` is not a floating-point tensor.
    """
    result: Tensor = call("normal_log_prob", value, loc, scale, lengths, mask)
    return result


def drawn_log_prob(eps: Tensor, pre_scale: Tensor, lengths: Tensor) -> Tensor:
    """Sum over valid t of the log-density of ``z_t = loc_t + softplus(pre_scale_t) eps_t``, in nats.

    As a function of its noise the density is ``-eps^2 / 2 - log scale - log(2 pi) / 2``: the location
    cancels, nothing is divided by the scale, and the gradient is that of the reparameterised draw.

    Args:
        eps: ``[..., B, T, Z]``.
        pre_scale: same shape as ``eps``.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``eps`` is not a floating-point tensor.
    """
    result: Tensor = call("drawn_log_prob", eps, pre_scale, lengths)
    return result
