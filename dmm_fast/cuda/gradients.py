"""GEMMs for the weight gradients of the scans: Triton's kernels if they can run, else torch's.

Both give the same sums except for rounding. torch's GEMMs are used on a GPU without Triton, and on the CPU
when the CUDA kernels are emulated.
"""

from torch import Tensor

from dmm_fast import triton
from dmm_fast.ops import _scan_gemms


def rnn_gradients(
    dx_proj: Tensor, dh_0: Tensor, h: Tensor, h_0: Tensor, lengths: Tensor, direction: str
) -> tuple[Tensor, Tensor]:
    """``dw_hh [H, H]``, from deltas that are zero past the ends, and ``dh_0`` with the shape of ``h_0``."""
    if by_triton(h):
        from dmm_fast.triton import step_gradients

        return step_gradients.rnn_gradients(dx_proj, dh_0, h, h_0, lengths, direction)
    dw_hh = _scan_gemms.rnn_weight_gradient(dx_proj, h, h_0.expand(dh_0.shape), lengths, direction)
    return dw_hh, dh_0.sum_to_size(h_0.shape)


def combiner_gradients(
    da: Tensor, dout: Tensor, dz_q_0: Tensor, g: Tensor, h: Tensor, z: Tensor, z_q_0: Tensor, lengths: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``z_q_0``, with its shape, and of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``.

    ``da, dout`` are zero past the ends.
    """
    if by_triton(h):
        from dmm_fast.triton import step_gradients

        return step_gradients.combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, lengths)
    start = z_q_0.expand(dz_q_0.shape)
    total = dz_q_0.sum_to_size(z_q_0.shape)
    return total, *_scan_gemms.combiner_weight_gradients(da, dout, g, h, z, start, lengths)


def by_triton(tensor: Tensor) -> bool:
    """True if Triton's kernels can run on the device of ``tensor``."""
    return tensor.is_cuda and triton.missing is None
