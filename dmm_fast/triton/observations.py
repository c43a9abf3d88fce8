"""Masking of the unobserved values of a mini-batch, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import cdiv, on_device_of
from dmm_fast.triton.rows import entries_of, entry_at

BLOCK = 512


def where_observed(x: Tensor, lengths: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``x [B, T, D]`` with 0 at unobserved entries, and the mask, ``[B, T]`` or ``[B, T, D]``, as bool."""
    B, T, D = x.shape
    out = torch.empty((B, T, D), dtype=x.dtype, device=x.device)
    bools = None if mask is None else torch.empty(mask.shape, dtype=torch.bool, device=x.device)
    if out.numel():
        with on_device_of(x):
            observed_kernel[(cdiv(out.numel(), BLOCK),)](
                *(entries_of(x), lengths.contiguous(), entries_of(mask)),
                *(out, bools, T, D, out.numel()),
                BY_FEATURE=mask is not None and mask.dim() == 3,
                BLOCK=BLOCK,
            )
    return out, bools


@triton.jit(do_not_specialize=["T", "D", "count"])
def observed_kernel(  # type: ignore[no-untyped-def]
    x, lengths, mask, out, bools, T, D, count, BY_FEATURE: tl.constexpr, BLOCK: tl.constexpr
):
    """A block of elements of out [B, T, D], and of the bool mask [B, T] or [B, T, D] if there is one."""
    # Divisions are of 32 bits if the number of elements fits.
    place = tl.program_id(0).to(count.dtype) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    step, d = place // D, (place % D).to(tl.int64)
    b, t = (step // T).to(tl.int64), (step % T).to(tl.int64)
    keep = inside & (t < tl.load(lengths + b, mask=inside, other=0))
    if mask is not None:
        given = tl.load(entry_at(mask, b, t, d), mask=inside, other=0) != 0
        keep &= given
        if BY_FEATURE:
            tl.store(bools + place, given, mask=inside)
        else:
            tl.store(bools + step, given, mask=inside & (d == 0))
    value = tl.load(entry_at(x, b, t, d), mask=keep, other=0.0)
    tl.store(out + place, value, mask=inside)
