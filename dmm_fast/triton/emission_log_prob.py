"""log p(x_{1:T} | z_{1:T}): emitter and log-density, a Bernoulli's or a Gaussian's."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import densities, emitter, rows, sums, tiles


@rows.rowwise_kernel
def emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, x, mask, terms, found, count, blocks, D: tl.constexpr
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
    w, hidden, taken, dout, x, mask, dx, terms, found, count, blocks
):
    """Whole rows, from dout [P, B]: gradients in scratch, by z, and dx [P, B, T, D] unless it is None.

    Also what is observed of each step, to terms [P, B, T] unless they are None.
    """
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    h_2, D = hidden.h_2, taken.dout.width
    d = tiles.gradient_at(dout, spots, valid)
    total = tl.zeros((blocks.M,), tl.float32)
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
        if terms is not None:
            if w.w_scale is None:
                term = densities.bernoulli_log_density(value, out)
            else:
                term = densities.normal_log_density(value, out, pre_scale)
            total += tl.sum(tl.where(keep, term, 0.0), 1)
        if dx is not None:
            tiles.write(dx, place, valid, columns, by_value)
    if terms is not None:
        tl.store(terms + place, total, mask=valid)
    tiles.gradients_of_rows(taken.beyond, index, place, valid, blocks)


def emission_log_prob(
    x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over what is observed of log p(x_t | z_t)."""
    terms, steps = sums.terms_of(z), rows.steps_of(z, lengths)
    given = (rows.rows_of(z), steps, rows.rows_of(x), rows.entries_of(mask), terms)
    emitter.forward(emission_log_prob_fwd_kernel, weights, terms.numel(), *given, D=x.shape[-1])
    return sums.sum_steps(terms, z, lengths)


def emission_log_prob_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
    mask: Tensor | None,
    with_dx: bool,
    with_out: bool,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """``dx [P, B, T, D]``, ``dz [P, B, T, Z]``, gradients of the weights, and the value ``[P, B]``.

    The first and the last are empty where they are not wanted.
    """
    P, B, T, _ = z.shape
    dx, dz = x.new_empty(x.shape if with_dx else (0,)), z.new_empty(z.shape)
    steps, terms = rows.steps_of(z, lengths), sums.terms_of(z) if with_out else None
    to_x = tiles.features_of(dx) if with_dx else None
    cleared = (tiles.features_of(dz),) if to_x is None else (tiles.features_of(dz), to_x)
    of_z = (rows.rows_of(z), steps, dz)
    given = (*of_z, sums.incoming(dout), rows.rows_of(x), rows.entries_of(mask), to_x, terms)
    kernel = emission_log_prob_bwd_kernel
    dweights = emitter.gradients(kernel, weights, P * B * T, *given, cleared=cleared)
    return dx, dz, dweights, sums.sum_steps(terms, z, lengths)


# The weights tell which emission it is.
gaussian_emission_log_prob = emission_log_prob
gaussian_emission_log_prob_backward = emission_log_prob_backward
