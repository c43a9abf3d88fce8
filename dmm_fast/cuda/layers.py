"""Layers of every step beside the combiner's scan: Triton's, where they can run, else torch's.

They are the same but for rounding, at all valid steps. Triton's are for GPUs; torch's are those of a GPU
without Triton, and of the CPU, where the CUDA kernels are emulated.
"""

from torch import Tensor

from dmm_fast import products
from dmm_fast.cuda.gradients import by_triton


def heads_of_hidden(
    h: Tensor, w_loc: Tensor, b_loc: Tensor, w_scale: Tensor, b_scale: Tensor, lengths: Tensor
) -> Tensor:
    """``[P, B, T, 2 Z]``: of loc and pre_scale, which are layers of (g + h) / 2, the part that needs no g."""
    if by_triton(h):
        from dmm_fast.kernels.step_layers import step_layers

        return step_layers(h, [(w_loc, b_loc), (w_scale, b_scale)], lengths, scale=0.5)
    return products.heads_of_hidden(h, w_loc, b_loc, w_scale, b_scale)


def tanh_of_latents(z: Tensor, z_q_0: Tensor, w_z: Tensor, b_z: Tensor, lengths: Tensor) -> Tensor:
    """``g = tanh(W_z z_{t-1} + b_z) [P, B, T, H]``, which the combiner's forward did not keep."""
    if by_triton(z):
        from dmm_fast.kernels.step_layers import step_layers

        return step_layers(z, [(w_z, b_z)], lengths, z_q_0, by_tanh=True)
    return products.tanh_of_latents(z, z_q_0, w_z, b_z)
