"""What the inference network's recurrence reads of the data: no kernel of its own but for weight gradients.

It is one matrix product over all rows. cuBLAS knows best how to multiply matrices of these sizes on each GPU;
what is left, zeros at invalid steps, is a pass over memory.
"""

import torch.nn.functional as F
from torch import Tensor

from dmm_fast.kernels.rows import clear_past_ends
from dmm_fast.kernels.step_gradients import projection_weight_gradients

__all__ = ["input_projection", "input_projection_backward"]


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    """``x_proj [P, B, T, H]``, zero past the end of each row."""
    P, B, T, D = x.shape
    x_proj = F.linear(x.reshape(P * B * T, D), w, b).view(P, B, T, w.shape[0])
    return clear_past_ends(x_proj, lengths)  # whatever came of an invalid row stayed in it


def input_projection_backward(
    dout: Tensor, x: Tensor, w: Tensor, lengths: Tensor, with_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [P, B, T, D], dw [H, D], db [H]``; without ``with_dx``, dx is empty."""
    if with_dx:
        dx = clear_past_ends(dout @ w, lengths)
    else:
        dx = x.new_empty((*x.shape[:2], 0, x.shape[3]))
    return dx, *projection_weight_gradients(dout, x, lengths)
