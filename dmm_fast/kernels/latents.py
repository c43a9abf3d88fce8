"""What the combiner's backward pass makes again of the latents, in one launch."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import cdiv, exact_tanh, on_device_of, split_precision
from dmm_fast.kernels.layers import bias, product
from dmm_fast.kernels.rows import before, places, rows_of, rowwise_kernel, steps_of, store_row

BLOCK_M, BLOCK_N = 64, 64


def tanh_of_latents(z: Tensor, z_q_0: Tensor, w_z: Tensor, b_z: Tensor) -> Tensor:
    """``g = tanh(W_z z_{t-1} + b_z)``, ``[P, B, T, H]`` in float32; past the ends it is as z is."""
    P, B, T, Z = z.shape
    H = w_z.shape[0]
    g = torch.empty((P, B, T, H), dtype=torch.float32, device=z.device)
    if g.numel():
        with on_device_of(g):
            tanh_of_latents_kernel[(cdiv(P * B * T, BLOCK_M), cdiv(H, BLOCK_N))](
                *(rows_of(z), rows_of(z_q_0), steps_of(z, None)),
                *(w_z.contiguous(), b_z.contiguous(), g),
                *(Z, H),
                PRECISION=split_precision(),
                BLOCK_M=BLOCK_M,
                BLOCK_N=BLOCK_N,
                BLOCK_K=32,
                num_warps=4,
                num_stages=3,
            )
    return g


@rowwise_kernel
def tanh_of_latents_kernel(  # type: ignore[no-untyped-def]
    z,
    z_0,
    steps,
    w,
    b,
    g,
    Z: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of g [P, B, T, H]."""
    index = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row, step, valid = places(steps, index)
    rows = before(z, z_0, steps, row, step)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = product(rows, valid, Z, w, columns, H, Z, 1, BLOCK_K, PRECISION) + bias(b, columns, H)
    store_row(g + index * H, columns, H, valid, exact_tanh(out))
