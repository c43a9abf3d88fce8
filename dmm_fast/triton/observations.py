"""Observed values of a mini-batch, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import cdiv, on_device_of

BLOCK = 512
_ANY_VALUE = ["T", "D", "count", *(f"{of}_{by}" for of in ("x", "mask") for by in "btd")]


def where_observed(x: Tensor, lengths: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x [B, T, D]`` with 0 wherever nothing is observed, and the mask, of any such shape, as bools."""
    B, T, D = x.shape
    out = torch.empty((B, T, D), dtype=x.dtype, device=x.device)
    bools = None if mask is None else torch.empty(mask.shape, dtype=torch.bool, device=x.device)
    strides = (0, 0, 0) if mask is None else (*mask.stride(), 0)[:3]
    if out.numel():
        with on_device_of(x):
            observed_kernel[(cdiv(out.numel(), BLOCK),)](
                *(x, *x.stride()),
                lengths.contiguous(),
                *(mask, *strides),
                *(out, bools),
                *(T, D, out.numel()),
                BY_FEATURE=mask is not None and mask.dim() == 3,
                BLOCK=BLOCK,
            )
    return out, bools


@triton.jit(do_not_specialize=_ANY_VALUE)
def observed_kernel(  # type: ignore[no-untyped-def]
    x,
    x_b,
    x_t,
    x_d,
    lengths,
    mask,
    mask_b,
    mask_t,
    mask_d,
    out,
    bools,
    T,
    D,
    count,
    BY_FEATURE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of elements of out [B, T, D], and of bools [B, T] or [B, T, D] where there is a mask."""
    # Divided as 32 bits where they hold the count.
    place = tl.program_id(0).to(count.dtype) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    step, d = place // D, (place % D).to(tl.int64)
    b, t = (step // T).to(tl.int64), (step % T).to(tl.int64)
    keep = inside & (t < tl.load(lengths + b, mask=inside, other=0))
    if mask is not None:
        given = tl.load(mask + b * mask_b + t * mask_t + d * mask_d, mask=inside, other=0) != 0
        keep &= given
        if BY_FEATURE:
            tl.store(bools + place, given, mask=inside)
        else:
            tl.store(bools + step, given, mask=inside & (d == 0))
    value = tl.load(x + b * x_b + t * x_t + d * x_d, mask=keep, other=0.0)
    tl.store(out + place, value, mask=inside)
