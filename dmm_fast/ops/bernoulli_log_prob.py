"""Bernoulli log-probabilities of whole sequences, masked and summed over time."""

from torch import Tensor

from dmm_fast.ops._registry import call


def bernoulli_log_prob(x: Tensor, logits: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum over what is observed of log Bernoulli(x; sigmoid(logits)), in nats.

    Args:
        x: ``[..., B, T, D]``, 0 or 1 where observed; broadcasts with ``logits`` on the particles.
        logits: ``[..., B, T, D]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        mask: ``[B, T]`` or ``[B, T, D]``, bool or 0/1: what is observed. None: all of it.

    Returns:
        ``[..., B]``.

    Raises:
        ValueError: a shape, dtype, device, length or mask that does not fit.
        TypeError: ``logits`` is no floating-point tensor.
    """
    result: Tensor = call("bernoulli_log_prob", x, logits, lengths, mask)
    return result
