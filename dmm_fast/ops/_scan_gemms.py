"""Batched GEMMs around the scans: recomputed activations and weight gradients, shared by the Triton and
CUDA backends.

Invalid steps are zero, so that all steps of all rows can go into one GEMM.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast.reference import CombinerWeights, previous, valid_steps


def allows_tf32() -> bool:
    """True if torch's precision setting for float32 GEMMs allows tf32 on a GPU; by default it does not."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def allows_bf16() -> bool:
    """True if the setting allows bf16 with float32 sums: ``set_float32_matmul_precision("medium")``."""
    if not allows_tf32():
        return False
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except (
        RuntimeError
    ):  # torch's newer settings, one for each kind of operation, are in use; none of them is bf16 on a GPU
        return False


def heads_of_hidden(h: Tensor, weights: CombinerWeights) -> Tensor:
    """``[P, B, T, 2 Z]``: the part of loc and pre_scale that does not depend on g: due to h and the biases.

    Both are linear layers of ``(g + h) / 2``.
    """
    w = torch.cat([weights.w_loc, weights.w_scale])
    b = torch.cat([weights.b_loc, weights.b_scale])
    return torch.addmm(b, h.flatten(0, 2), w.mT, alpha=0.5).view(*h.shape[:3], len(w))


def rnn_weight_gradient(dx_proj: Tensor, h: Tensor, h_0: Tensor, lengths: Tensor, direction: str) -> Tensor:
    """``dw_hh [H, H]``: the sum over steps of each step's deltas times the state that it read.

    The state is ``h_{t+1}``, or ``h_0`` at a row's end; forward in time ``h_{t-1}``, or ``h_0`` at a row's
    first step.
    """
    T = h.shape[2]
    if direction == "forward":
        read = torch.where(valid_steps(lengths, T)[..., None], previous(h, h_0), 0.0)
    else:
        is_last = torch.arange(1, T + 1, device=h.device) == lengths[:, None]
        later = F.pad(h[:, :, 1:], (0, 0, 0, 1))
        read = torch.where(is_last[..., None], h_0[:, :, None], later)
    return dx_proj.flatten(0, 2).mT @ read.flatten(0, 2)


def combiner_weight_gradients(
    da: Tensor, dout: Tensor, g: Tensor, h: Tensor, z: Tensor, z_q_0: Tensor, lengths: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``.

    ``da`` is the gradient with respect to the argument of the tanh g, ``dout [P, B, T, 2 Z]`` that with
    respect to loc and pre_scale. Both are zero past the end of each row.
    """
    valid = valid_steps(lengths, z.shape[2])[..., None]
    z_before = torch.where(valid, previous(z, z_q_0), 0.0).flatten(0, 2)
    c = torch.where(valid, 0.5 * (g + h), 0.0).flatten(0, 2)
    da, dout = da.flatten(0, 2), dout.flatten(0, 2)
    dloc, dpre_scale = dout.chunk(2, dim=1)
    return da.mT @ z_before, da.sum(0), dloc.mT @ c, dloc.sum(0), dpre_scale.mT @ c, dpre_scale.sum(0)
