"""A layer of every step beside the combiner's scan: Triton's, where it can run, else torch's.

Both are the same but for rounding, at all valid steps. Triton's is for GPUs; torch's is that of a GPU
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
