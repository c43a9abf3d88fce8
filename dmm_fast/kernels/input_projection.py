"""Inputs of the inference network's recurrence: a layer of every step."""

from torch import Tensor

from dmm_fast.kernels.rows import clear_past_ends
from dmm_fast.kernels.step_gradients import projection_weight_gradients
from dmm_fast.kernels.step_layers import step_layers

__all__ = ["input_projection", "input_projection_backward"]


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    """``x_proj [P, B, T, H]``, zero past the end of each row."""
    return step_layers(x, [(w, b)], lengths)


def input_projection_backward(
    dout: Tensor, x: Tensor, w: Tensor, lengths: Tensor, with_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [P, B, T, D], dw [H, D], db [H]``; without ``with_dx``, dx is empty."""
    if with_dx:
        dx = clear_past_ends(dout @ w, lengths)
    else:
        dx = x.new_empty((*x.shape[:2], 0, x.shape[3]))
    return dx, *projection_weight_gradients(dout, x, lengths)
