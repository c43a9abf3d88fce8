"""The input projection of the inference network's recurrence, a linear layer applied to every step."""

from torch import Tensor

from dmm_fast.triton.rows import clear_past_ends
from dmm_fast.triton.step_gradients import projection_weight_gradients
from dmm_fast.triton.step_layers import step_layers


def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    """``x_proj [P, B, T, H]``, zero past the end of each row."""
    return step_layers(x, [(w, b)], lengths)


def input_projection_backward(
    dx_proj: Tensor, x: Tensor, w: Tensor, lengths: Tensor, with_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx [P, B, T, D], dw [H, D], db [H]``; without ``with_dx``, dx is empty."""
    dx = clear_past_ends(dx_proj @ w, lengths) if with_dx else x.new_empty(0)
    return dx, *projection_weight_gradients(dx_proj, x, lengths)
