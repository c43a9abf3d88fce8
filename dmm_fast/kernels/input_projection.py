"""What the inference network's recurrence reads of the data: no kernel of its own.

It is one matrix product over all rows and its gradient two more. cuBLAS knows best how to multiply
matrices of these sizes on each GPU; what is left, zeros at invalid steps, is a pass over memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast.reference import valid_steps

__all__ = ["input_projection", "input_projection_backward"]


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    """``x_proj [P, B, T, H]``, zero past the end of each row."""
    P, B, T, D = x.shape
    valid = valid_steps(lengths, T)[..., None]
    x_proj = F.linear(x.reshape(P * B * T, D), w, b).view(P, B, T, w.shape[0])
    return x_proj.masked_fill_(~valid, 0.0)  # whatever came of an invalid row stayed in it


def input_projection_backward(
    dout: Tensor, x: Tensor, w: Tensor, lengths: Tensor, with_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [P, B, T, D], dw [H, D], db [H]``; without ``with_dx``, dx is empty."""
    P, B, T, D = x.shape
    valid = valid_steps(lengths, T)[..., None]
    x_rows = torch.where(valid, x, 0.0).reshape(P * B * T, D)
    d_rows = torch.where(valid, dout, 0.0).reshape(P * B * T, w.shape[0])
    if with_dx:
        dx = (d_rows @ w).view(P, B, T, D).masked_fill_(~valid, 0.0)
    else:
        dx = x.new_empty((P, B, 0, D))
    return dx, d_rows.mT @ x_rows, d_rows.sum(0)
