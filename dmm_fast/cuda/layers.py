"""The GEMM before the combiner's scan: Triton's kernel if it can run, else torch's.

Both give the same results at all valid steps except for rounding. torch's GEMM is used on a GPU without
Triton, and on the CPU when the CUDA kernels are emulated.
"""

from torch import Tensor

from dmm_fast.cuda.gradients import by_triton
from dmm_fast.ops import _scan_gemms
from dmm_fast.reference import CombinerWeights


def heads_of_hidden(h: Tensor, weights: CombinerWeights, lengths: Tensor) -> Tensor:
    """``[P, B, T, 2 Z]``: the part of loc and pre_scale that does not depend on g: due to h and the biases.

    Both are linear layers of ``(g + h) / 2``.
    """
    if by_triton(h):
        from dmm_fast.triton.step_layers import step_layers

        heads = [(weights.w_loc, weights.b_loc), (weights.w_scale, weights.b_scale)]
        return step_layers(h, heads, lengths, scale=0.5)
    return _scan_gemms.heads_of_hidden(h, weights)
