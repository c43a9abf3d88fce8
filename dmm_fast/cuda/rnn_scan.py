"""The inference network's recurrence, backward or forward in time, and its gradient."""

import torch
from torch import Tensor

from dmm_fast.cuda.devices import device_of
from dmm_fast.cuda.gradients import rnn_gradients
from dmm_fast.cuda.plan import Plan, rnn_plan
from dmm_fast.cuda.rnn_bf16 import Bf16Tiling
from dmm_fast.ops._scan_gemms import allows_bf16, allows_tf32


def rnn_scan(
    x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> Tensor:
    """``h [P, B, T, H]``, zero past the end of each row."""
    P, B, _, H = x_proj.shape
    plan = rnn_plan(P * B, H, device_of(x_proj), tf32=allows_tf32(), bf16=allows_bf16())
    x_proj = for_kernel(x_proj, plan)
    start = h_0.expand(P, B, H)
    return torch.ops.dmm_fast._launch_rnn_scan(
        x_proj, w_hh, start, lengths, nonlinearity, direction, plan.numbers
    )


def rnn_scan_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx_proj [P, B, T, H]``, ``dw_hh [H, H]``, and ``dh_0`` with the shape of ``h_0``."""
    P, B, _, H = h.shape
    plan = rnn_plan(P * B, H, device_of(h), backward=True, tf32=allows_tf32(), bf16=allows_bf16())
    dx_proj, dh_0 = torch.ops.dmm_fast._launch_rnn_scan_backward(
        for_kernel(dh, plan), for_kernel(h, plan), w_hh, lengths, nonlinearity, direction, plan.numbers
    )
    return dx_proj, *rnn_gradients(dx_proj, dh_0, h, h_0, lengths, direction)


def for_kernel(x: Tensor, plan: Plan) -> Tensor:
    """``x [P, B, T, H]``, copied if not aligned for a bf16 kernel, which loads four elements at once."""
    by_fours = (
        x.stride(3) == 1 and all(stride % 4 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    )
    if by_fours or not isinstance(plan.tilings[0], Bf16Tiling):
        return x
    return x.clone(memory_format=torch.contiguous_format)
