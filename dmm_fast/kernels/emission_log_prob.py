"""log p(x_{1:T} | z_{1:T}): emitter and log-density, a Bernoulli's or a Gaussian's."""

import triton.language as tl
from torch import Tensor

from dmm_fast.kernels.densities import (
    bernoulli_log_density,
    bernoulli_slope,
    normal_log_density,
    normal_slopes,
)
from dmm_fast.kernels.emitter import (
    Hidden,
    Taken,
    Weights,
    emitter_forward,
    emitter_gradients,
    emitter_hidden,
)
from dmm_fast.kernels.rows import (
    load,
    mask_of,
    observed,
    rows_of,
    rowwise_kernel,
    steps_of,
    sum_steps,
    terms_of,
)
from dmm_fast.kernels.tiles import (
    features_of,
    gradient_at,
    gradients_of_rows,
    launch_tiles,
    layer_of,
    row_at,
    rows_of_tile,
    spots_of,
    write,
)

__all__ = ["emission_log_prob", "emission_log_prob_backward"]


@rowwise_kernel
def emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w,
    hidden,
    x,
    steps,
    mask,
    terms,
    found,
    count,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows: terms [P, B, T] is what is observed of each step."""
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    spots = spots_of(found, count, index, valid)
    x_row = row_at(x, spots)
    emitter_hidden(w, hidden, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    h_2 = hidden.h_2
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for n in range(0, D, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = observed(mask, spots.b, spots.t, columns, D, valid)
        value = load(x_row, columns, keep)
        out = layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, BLOCK_K, PRECISION)
        if w.w_scale is None:
            term = bernoulli_log_density(value, out)
        else:
            pre_scale = layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, BLOCK_K, PRECISION)
            term = normal_log_density(value, out, pre_scale)
        acc += tl.where(keep, term, 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rowwise_kernel
def emission_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w,
    hidden,
    taken,
    dout,
    x,
    steps,
    mask,
    dx,
    found,
    count,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Whole rows, from dout [P, B]: gradients in scratch, by z, and dx [P, B, T, D] unless it is None."""
    index, place, valid = rows_of_tile(found, count, BLOCK_M)
    spots = spots_of(found, count, index, valid)
    emitter_hidden(w, hidden, index, valid, BLOCK_N, BLOCK_K, PRECISION)
    h_2, D = hidden.h_2, taken.dout.width
    d = gradient_at(dout, spots, steps, valid)
    for n in range(0, taken.dout.width, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        keep = observed(mask, spots.b, spots.t, columns, D, valid)
        value = load(row_at(x, spots), columns, keep)
        out = layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, BLOCK_K, PRECISION)
        if w.w_scale is None:
            by_out = tl.where(keep, d * bernoulli_slope(value, out), 0.0)
            by_value = tl.where(keep, d * out, 0.0)
        else:
            pre_scale = layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, BLOCK_K, PRECISION)
            by_out, by_pre_scale = normal_slopes(value, out, pre_scale)
            by_out = tl.where(keep, d * by_out, 0.0)
            by_value = -by_out
            write(taken.dpre_scale, index, valid, columns, tl.where(keep, d * by_pre_scale, 0.0))
        write(taken.dout, index, valid, columns, by_out)
        if dx is not None:
            write(dx, place, valid, columns, by_value)
    gradients_of_rows(taken.beyond, index, place, valid, BLOCK_N, BLOCK_K, PRECISION)


def emission_log_prob(
    x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log p(x_t | z_t)."""
    terms, steps = terms_of(z), steps_of(z, lengths)
    given = (rows_of(x), steps, mask_of(mask), terms)

    def head(w: Weights, hidden: Hidden, found: Tensor) -> None:
        launch_tiles(emission_log_prob_fwd_kernel, found, (), w, hidden, *given, D=x.shape[-1])

    emitter_forward(head, weights, terms.numel(), rows_of(z), steps)
    return sum_steps(terms, z, lengths)


def emission_log_prob_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
    mask: Tensor | None,
    with_dx: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``dx [P, B, T, D]``, or empty where it is not wanted, ``dz [P, B, T, Z]``, gradients of the weights."""
    P, B, T, _ = z.shape
    dx, dz = x.new_zeros(x.shape if with_dx else (0,)), z.new_zeros(z.shape)
    steps = steps_of(z, lengths)
    given = (dout.contiguous(), rows_of(x), steps, mask_of(mask), features_of(dx) if with_dx else None)

    def head(w: Weights, hidden: Hidden, taken: Taken, found: Tensor) -> None:
        launch_tiles(emission_log_prob_bwd_kernel, found, (), w, hidden, taken, *given)

    return dx, dz, emitter_gradients(head, weights, P * B * T, rows_of(z), steps, dz)
