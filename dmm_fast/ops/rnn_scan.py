"""The inference network's recurrence, backward or forward in time."""

from torch import Tensor

from dmm_fast.ops._registry import call


def rnn_scan(
    x_proj: Tensor,
    w_hh: Tensor,
    h_0: Tensor,
    lengths: Tensor,
    nonlinearity: str = "relu",
    direction: str = "backward",
) -> Tensor:
    r"""Run ``h_t = f(x_proj_t + W_hh h_{t+1})`` from each row's own end back to ``t = 1``.

    With ``direction="forward"`` it is ``h_t = f(x_proj_t + W_hh h_{t-1})`` from ``t = 1`` to each row's end.

    On a GPU, backend ``"cuda"`` multiplies in the precision set by ``torch.set_float32_matmul_precision``:
    ``"highest"`` in float32, ``"high"`` in tf32 for large batches, ``"medium"`` also in bf16, where both
    ``W_hh`` and the state are rounded to 8 bits. Sums, ``x_proj``, ``f`` and results are always in float32.
    The scan of the gradient rounds likewise. Torch's newer setting,
    ``torch.backends.cuda.matmul.fp32_precision``, has only ``"ieee"`` and ``"tf32"``: bf16 needs
    ``"medium"`` of the older one.

    Args:
        x_proj: ``[..., B, T, H]``, the projected inputs ``x W_ih^T + b_ih + b_hh``.
        w_hh: ``[H, H]``.
        h_0: the initial state, read by row ``b`` at ``t = lengths[b]`` if backward and at ``t = 1`` if
            forward; of any shape that broadcasts to ``[..., B, H]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        direction: the direction of time, ``"backward"`` or ``"forward"``.

    Returns:
        ``h [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``x_proj`` is not a floating-point tensor.

    Source: arXiv 1609.09869, section 4; ``nn.RNN`` on the reversed batch in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("rnn_scan", x_proj, w_hh, h_0, lengths, nonlinearity, direction)
    return result
