"""A layer of every step beside the combiner's scan: Triton's, where it can run, else torch's.

Both are the same but for rounding, at all valid steps. Triton's is for GPUs; torch's is that of a GPU
without Triton, and of the CPU, where the CUDA kernels are emulated.
"""

from torch import Tensor

from dmm_fast.cuda.gradients import by_triton
from dmm_fast.ops import _scan_gemms
from dmm_fast.reference import CombinerWeights


def heads_of_hidden(h: Tensor, weights: CombinerWeights, lengths: Tensor) -> Tensor:
    """``[P, B, T, 2 Z]``: of loc and pre_scale, which are layers of (g + h) / 2, the part that needs no g."""
    if by_triton(h):
        from dmm_fast.triton.step_layers import step_layers

        heads = [(weights.w_loc, weights.b_loc), (weights.w_scale, weights.b_scale)]
        return step_layers(h, heads, lengths, scale=0.5)
    return _scan_gemms.heads_of_hidden(h, weights)
