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

    Forward it is ``h_t = f(x_proj_t + W_hh h_{t-1})`` from ``t = 1`` to each row's own end.

    On a GPU, backend ``"cuda"`` multiplies as precisely as ``torch.set_float32_matmul_precision`` says:
    ``"highest"`` in float32, ``"high"`` for large batches in tf32, ``"medium"`` also in bf16, where both
    ``W_hh`` and the state that it meets are rounded to 8 bits. Sums, ``x_proj``, ``f`` and results are in
    float32 always. The gradient's scan rounds likewise. Torch's newer setting,
    ``torch.backends.cuda.matmul.fp32_precision``, knows ``"ieee"`` and ``"tf32"`` only: bf16 is for the other
    one's ``"medium"``.

    Args:
        x_proj: ``[..., B, T, H]``, the projected inputs ``x W_ih^T + b_ih + b_hh``.
        w_hh: ``[H, H]``.
        h_0: what row ``b`` starts from, backward at ``t = lengths[b]`` and forward at ``t = 1``; of any shape
            that broadcasts to ``[..., B, H]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        direction: of time, ``"backward"`` or ``"forward"``.

    Returns:
        ``h [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``x_proj`` is no floating-point tensor.

    Source: arXiv 1609.09869, section 4; ``nn.RNN`` on the reversed batch in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("rnn_scan", x_proj, w_hh, h_0, lengths, nonlinearity, direction)
    return result
