"""The projected data that the inference network's recurrence reads."""

from torch import Tensor

from dmm_fast.ops._registry import call


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    r"""``x_proj_t = W x_t + b`` on valid steps.

    Rows of few nonzero values, as piano rolls have them, may be computed from those alone: a weight that
    is not finite is then seen only where it meets one.

    Args:
        x: ``[..., B, T, D]``; what stands past the end of a row is not read.
        w: ``[H, D]``, ``W_ih`` of a recurrent layer.
        b: ``[H]``, its ``b_ih + b_hh``.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``x_proj [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``x`` is no floating-point tensor.

    Source: arXiv 1609.09869, section 4; the first half of ``nn.RNN`` in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("input_projection", x, w, b, lengths)
    return result
