"""What is not sequential about the scans: products over all steps at once, for every library on a GPU.

Zeros stand for what is invalid, so that all steps of all rows may go into one product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast.reference import previous, valid_steps


def allows_tf32() -> bool:
    """Whether torch's own setting for products in float32 allows tf32 on a GPU; by default it does not."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def following(h: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
    """``h_{t+1}`` at every step: what each step read, ``h_0`` at a row's own end and zero past it."""
    T = h.shape[2]
    is_last = torch.arange(1, T + 1, device=h.device) == lengths[:, None]
    later = F.pad(h[:, :, 1:], (0, 0, 0, 1))
    return torch.where(is_last[..., None], h_0[:, :, None], later)


def combiner_states(
    h: Tensor, z: Tensor, z_q_0: Tensor, w_z: Tensor, b_z: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the combiner's forward did not keep, in float32: ``z_{t-1}``, ``g = tanh(W_z z_{t-1} + b_z)``
    and ``c = (g + h) / 2``.
    """
    valid = valid_steps(lengths, z.shape[2])[..., None]
    z_before = torch.where(valid, previous(z, z_q_0), 0.0).float()
    g = torch.where(valid, torch.tanh(F.linear(z_before, w_z.float(), b_z.float())), 0.0).contiguous()
    return z_before, g, torch.where(valid, 0.5 * (g + h), 0.0)


def combiner_weight_gradients(da: Tensor, dout: Tensor, z_before: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``.

    ``da`` is of what g is the tanh of; ``dout [P, B, T, 2 Z]`` is of loc and of pre_scale.
    """
    da, dout, z_before, c = (t.flatten(0, 2) for t in (da, dout, z_before, c))
    dloc, dpre_scale = dout.chunk(2, dim=1)
    return da.mT @ z_before, da.sum(0), dloc.mT @ c, dloc.sum(0), dpre_scale.mT @ c, dpre_scale.sum(0)
