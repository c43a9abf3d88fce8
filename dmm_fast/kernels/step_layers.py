"""Layers of every step of sequences, each a single product over all rows of a batch."""

import torch
import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.common import exact_tanh
from dmm_fast.kernels.rows import decoded, rows_of, rowwise_kernel, steps_of, store_row, unit_of
from dmm_fast.kernels.tiles import Columns, Layer, launch_rows, layer_tile, rows_of_steps, widths_of


@rowwise_kernel
def step_layers_kernel(  # type: ignore[no-untyped-def]
    x,
    start,
    steps,
    layers,
    count,
    K: tl.constexpr,
    SCALE: tl.constexpr,
    BY_TANH: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of one of the layers of every step, zero past the end of each row."""
    begin = tl.program_id(0).to(tl.int64) * BLOCK_M
    T = decoded(steps.steps).to(tl.int32)
    # One division of 64 bits, which are slow.
    number = (begin % T).to(tl.int32) + tl.arange(0, BLOCK_M)
    row, step = (begin // T).to(tl.int32) + number // T, (number % T).to(tl.int64)
    index = begin + tl.arange(0, BLOCK_M)
    inside = index < count
    valid = step < tl.load(steps.lengths + row % decoded(steps.batch), mask=inside, other=0)
    rows = rows_of_steps(x, start, steps, row, step, UNIT)
    out, columns, to, stride, N = layer_tile(rows, valid, K, layers, SCALE, BLOCK_N, BLOCK_K, PRECISION)
    if BY_TANH:
        out = exact_tanh(out)
    store_row(to + index * stride, columns, N, inside, tl.where(valid[:, None], out, 0.0))


def step_layers(
    x: Tensor,
    layers: list[tuple[Tensor, Tensor]],
    lengths: Tensor,
    start: Tensor | None = None,
    *,
    scale: float = 1.0,
    by_tanh: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``[P, B, T, widths]``: ``scale W x_t + b`` of the layers side by side, or its tanh.

    It is zero past the end of each row, and of the dtype of ``x`` if none is given. With a
    ``start [P, B, K]``, they are of the step before, and at the first step of ``start``.
    """
    P, B, T, K = x.shape
    width = sum(len(w) for w, _ in layers)
    out = x.new_empty((P, B, T, width), dtype=dtype)
    flat, first, of_steps = out.view(P * B * T, width), 0, []
    for w, b in layers:
        to = Columns(flat[:, first:], tl.constexpr(width), tl.constexpr(len(w)))
        of_steps.append(Layer(w.contiguous(), b.contiguous(), False, to))
        first += len(w)
    rows, begins = rows_of(x), None if start is None else rows_of(start)
    given = (rows, begins, steps_of(x, lengths), tuple(of_steps))
    options = {"K": K, "SCALE": scale, "BY_TANH": by_tanh, "UNIT": unit_of(rows, begins)}
    launch_rows(step_layers_kernel, P * B * T, x, widths_of(of_steps), *given, **options)
    return out
