"""The input projection of the inference network's recurrence."""

from torch import Tensor

from dmm_fast.ops._registry import call


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    r"""``x_proj_t = W x_t + b`` at valid steps.

    Rows with few nonzero values, as in piano rolls, may be computed from these values alone: a weight that is
    not finite then affects the result only where its input is nonzero.

    Args:
        x: ``[..., B, T, D]``; entries past the end of a row are ignored.
        w: ``[H, D]``, ``W_ih`` of a recurrent layer.
        b: ``[H]``, its ``b_ih + b_hh``.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``x_proj [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``x`` is not a floating-point tensor.

    Source: arXiv 1609.09869, section 4; the first half of ``nn.RNN`` in Pyro's ``examples/dmm.py``.
    """
    result: Tensor = call("input_projection", x, w, b, lengths)
    return result
