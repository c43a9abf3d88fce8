"""Bernoulli log-probabilities of whole sequences, masked and summed over time."""

from torch import Tensor

from dmm_fast.ops._registry import call


def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum over observed entries of log Bernoulli(x; sigmoid(logits)), in nats.

    Args:
        x: ``[..., B, T, D]``, 0 or 1 where observed; broadcasts with ``logits`` on the particles.
        logits: ``[..., B, T, D]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1, 1 at observed entries. None: all observed.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask is wrong.
        TypeError: ``logits`` is not a floating-point tensor.
    """
    result: Tensor = call("bernoulli_log_prob", x, logits, lengths, mask)
    return result
