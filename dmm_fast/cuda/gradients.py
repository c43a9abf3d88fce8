"""Weight gradients of the scans: Triton's grouped products, where they can run, else torch's.

The sums are the same but for rounding. Triton's are for GPUs; torch's are those of a GPU without Triton,
and of the CPU, where the CUDA kernels are emulated.
"""

from torch import Tensor

from dmm_fast import kernels, products


def rnn_weight_gradient(dx_proj: Tensor, h: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
    """``dw_hh [H, H]``, from deltas that are zero past the end of each row."""
    if by_triton(h):
        from dmm_fast.kernels import step_gradients

        return step_gradients.rnn_weight_gradient(dx_proj, h, h_0, lengths)
    return products.rnn_weight_gradient(dx_proj, h, h_0, lengths)


def combiner_weight_gradients(
    da: Tensor, dout: Tensor, g: Tensor, h: Tensor, z: Tensor, z_q_0: Tensor, lengths: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``; ``da, dout`` are zero past the ends."""
    if by_triton(h):
        from dmm_fast.kernels import step_gradients

        return step_gradients.combiner_weight_gradients(da, dout, g, h, z, z_q_0, lengths)
    return products.combiner_weight_gradients(da, dout, g, h, z, z_q_0, lengths)


def by_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels can run on it."""
    return tensor.is_cuda and kernels.missing is None
