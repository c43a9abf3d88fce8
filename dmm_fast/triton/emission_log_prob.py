"""log p(x_{1:T} | z_{1:T}): emitter and log-density, a Bernoulli's or a Gaussian's."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import densities, emitter, rows, tiles


@rows.rowwise_kernel
def emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, x, steps, mask, terms, found, count, blocks, D: tl.constexpr
):
    """Whole rows: terms [P, B, T] is what is observed of each step."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    x_row = tiles.row_at(x, spots)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    h_2 = hidden.h_2
    acc = tl.zeros((blocks.M, blocks.N), tl.float32)
    for n in range(0, D, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        value = rows.load(x_row, columns, keep)
        out = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        if w.w_scale is None:
            term = densities.bernoulli_log_density(value, out)
        else:
            pre_scale = tiles.layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, blocks)
            term = densities.normal_log_density(value, out, pre_scale)
        acc += tl.where(keep, term, 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def emission_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, taken, dout, x, steps, mask, dx, found, count, blocks
):
    """Whole rows, from dout [P, B]: gradients in scratch, by z, and dx [P, B, T, D] unless it is None."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    h_2, D = hidden.h_2, taken.dout.width
    d = tiles.gradient_at(dout, spots, steps, valid)
    for n in range(0, taken.dout.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        value = rows.load(tiles.row_at(x, spots), columns, keep)
        out = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        if w.w_scale is None:
            by_out = tl.where(keep, d * densities.bernoulli_slope(value, out), 0.0)
            by_value = tl.where(keep, d * out, 0.0)
        else:
            pre_scale = tiles.layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, blocks)
            by_out, by_pre_scale = densities.normal_slopes(value, out, pre_scale)
            by_out = tl.where(keep, d * by_out, 0.0)
            by_value = -by_out
            tiles.write(taken.dpre_scale, index, valid, columns, tl.where(keep, d * by_pre_scale, 0.0))
        tiles.write(taken.dout, index, valid, columns, by_out)
        if dx is not None:
            tiles.write(dx, place, valid, columns, by_value)
    tiles.gradients_of_rows(taken.beyond, index, place, valid, blocks)


def emission_log_prob(
    x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log p(x_t | z_t)."""
    terms, steps = rows.terms_of(z), rows.steps_of(z, lengths)
    given = (rows.rows_of(z), steps, rows.rows_of(x), steps, rows.entries_of(mask), terms)
    emitter.forward(emission_log_prob_fwd_kernel, weights, terms.numel(), *given, D=x.shape[-1])
    return rows.sum_steps(terms, z, lengths)


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
    steps = rows.steps_of(z, lengths)
    to_x = tiles.features_of(dx) if with_dx else None
    given = (dout.contiguous(), rows.rows_of(x), steps, rows.entries_of(mask), to_x)
    of_z = (rows.rows_of(z), steps, dz)
    return dx, dz, emitter.gradients(emission_log_prob_bwd_kernel, weights, P * B * T, *of_z, *given)


# The weights tell which emission it is.
gaussian_emission_log_prob = emission_log_prob
gaussian_emission_log_prob_backward = emission_log_prob_backward
