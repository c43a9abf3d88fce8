"""Linear layers applied to every step of sequences, each a single GEMM over all rows of a batch."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton.rows import at, decoded, rows_of, rowwise_kernel, steps_of, store_row, unit_of
from dmm_fast.triton.tiles import Columns, Layer, launch_rows, layer_tile, widths_of


@rowwise_kernel
def step_layers_kernel(  # type: ignore[no-untyped-def]
    x, steps, layers, count, blocks, K: tl.constexpr, SCALE: tl.constexpr, UNIT: tl.constexpr
):
    """A tile of one of the layers of every step, zero past the end of each row."""
    begin = tl.program_id(0).to(tl.int64) * blocks.M
    T = decoded(steps.steps).to(tl.int32)
    # Only one division of 64 bits, since they are slow.
    number = (begin % T).to(tl.int32) + tl.arange(0, blocks.M)
    row, step = (begin // T).to(tl.int32) + number // T, (number % T).to(tl.int64)
    index = begin + tl.arange(0, blocks.M)
    inside = index < count
    valid = step < tl.load(steps.lengths + row % decoded(steps.batch), mask=inside, other=0)
    rows = at(x, steps, row, step, UNIT)
    out, columns, to, stride, N = layer_tile(rows, valid, K, layers, SCALE, blocks)
    store_row(to + index * stride, columns, N, inside, tl.where(valid[:, None], out, 0.0))


def step_layers(
    x: Tensor, layers: list[tuple[Tensor, Tensor]], lengths: Tensor, *, scale: float = 1.0
) -> Tensor:
    """``[P, B, T, widths]``: ``scale W x_t + b`` of the layers side by side, zero past the ends of rows."""
    P, B, T, K = x.shape
    width = sum(len(w) for w, _ in layers)
    out = x.new_empty((P, B, T, width))
    flat, first, of_steps = out.view(P * B * T, width), 0, []
    for w, b in layers:
        to = Columns(flat[:, first:], tl.constexpr(width), tl.constexpr(len(w)))
        of_steps.append(Layer(w.contiguous(), b.contiguous(), False, to))
        first += len(w)
    rows = rows_of(x)
    given = (rows, steps_of(x, lengths), tuple(of_steps))
    options = {"K": K, "SCALE": scale, "UNIT": unit_of(rows)}
    launch_rows(step_layers_kernel, P * B * T, x, widths_of(of_steps), *given, **options)
    return out
