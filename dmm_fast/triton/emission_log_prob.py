"""log p(x_{1:T} | z_{1:T}): emitter and log-density of one of the heads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import categorical, emitter, heads, rows, sums, tiles

# Columns that a head processes at a time if those of a layer's block would need too many registers.
FEW = tl.constexpr(32)


@rows.rowwise_kernel
def emission_log_prob_fwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, x, mask, terms, found, count, blocks, D: tl.constexpr, HEAD: tl.constexpr, NARROW: tl.constexpr
):
    """Whole rows: terms [P, B, T] is the log-density of the observed entries of each step."""
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    x_row = tiles.row_at(x, spots)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    h_2 = hidden.h_2
    acc = tl.zeros((blocks.M, FEW if NARROW else blocks.N), tl.float32)
    for n in range(0, D, FEW if NARROW else blocks.N):
        columns = n + tl.arange(0, FEW if NARROW else blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        value = rows.load(x_row, columns, keep)
        out = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        second = out
        if w.w_scale is not None:
            second = tiles.layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, blocks)
        acc += tl.where(keep, heads.log_density(value, out, second, HEAD), 0.0)
    tl.store(terms + place, tl.sum(acc, 1), mask=valid)


@rows.rowwise_kernel
def emission_log_prob_bwd_kernel(  # type: ignore[no-untyped-def]
    w, hidden, taken, dout, x, mask, dx, terms, found, count, blocks, HEAD: tl.constexpr, NARROW: tl.constexpr
):
    """Whole rows, from dout [P, B]: gradients in scratch, by z, and dx [P, B, T, D] unless it is None.

    Also writes the log-density of each step to terms [P, B, T] unless it is None.
    """
    index, place, valid = tiles.rows_of_tile(found, count, blocks)
    emitter.hidden_layers(w, hidden, index, valid, blocks)
    spots = tiles.spots_of(found, count, index, valid)
    h_2, D = hidden.h_2, taken.dout.width
    d = tiles.gradient_at(dout, spots, valid)
    total = tl.zeros((blocks.M,), tl.float32)
    for n in range(0, taken.dout.width, FEW if NARROW else blocks.N):
        columns = n + tl.arange(0, FEW if NARROW else blocks.N)
        keep = rows.observed(mask, spots.b, spots.t, columns, D, valid)
        value = rows.load(tiles.row_at(x, spots), columns, keep)
        out = tiles.layer_of(h_2, index, valid, w.w_out, w.b_out, columns, D, blocks)
        second = out
        if w.w_scale is not None:
            second = tiles.layer_of(h_2, index, valid, w.w_scale, w.b_scale, columns, D, blocks)
        by_out, by_second = heads.slopes(value, out, second, HEAD)
        by_out = tl.where(keep, d * by_out, 0.0)
        by_value = heads.gradient_by_value(d, value, out, second, by_out, HEAD)
        if w.w_scale is not None:
            tiles.write(taken.dpre_scale, index, valid, columns, tl.where(keep, d * by_second, 0.0))
        tiles.write(taken.dout, index, valid, columns, by_out)
        if terms is not None:
            total += tl.sum(tl.where(keep, heads.log_density(value, out, second, HEAD), 0.0), 1)
        if dx is not None:
            tiles.write(dx, place, valid, columns, tl.where(keep, by_value, 0.0))
    if terms is not None:
        tl.store(terms + place, total, mask=valid)
    tiles.gradients_of_rows(taken.beyond, index, place, valid, blocks)


def _value(
    head: str, x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over observed entries of log p(x_t | z_t)."""
    terms, steps = sums.terms_of(z), rows.steps_of(z, lengths)
    given = (rows.rows_of(z), steps, rows.rows_of(x), rows.entries_of(mask), terms)
    kernel, options = _kernel(head, backward=False)
    emitter.forward(kernel, weights, terms.numel(), *given, D=x.shape[-1], **options)
    return sums.sum_steps(terms, z, lengths)


def _gradients(
    head: str,
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

    The first and the last are empty if not requested.
    """
    P, B, T, _ = z.shape
    dx, dz = x.new_empty(x.shape if with_dx else (0,)), z.new_empty(z.shape)
    steps, terms = rows.steps_of(z, lengths), sums.terms_of(z) if with_out else None
    to_x = tiles.features_of(dx) if with_dx else None
    cleared = (tiles.features_of(dz),) if to_x is None else (tiles.features_of(dz), to_x)
    of_z = (rows.rows_of(z), steps, dz)
    given = (*of_z, sums.incoming(dout), rows.rows_of(x), rows.entries_of(mask), to_x, terms)
    kernel, options = _kernel(head, backward=True)
    dweights = emitter.gradients(kernel, weights, P * B * T, *given, cleared=cleared, **options)
    return dx, dz, dweights, sums.sum_steps(terms, z, lengths)


def _kernel(head: str, *, backward: bool) -> tuple[Any, dict[str, Any]]:
    """The kernel of a head, and its further options."""
    if head == "categorical":
        kernels = (
            categorical.categorical_emission_log_prob_fwd_kernel,
            categorical.categorical_emission_log_prob_bwd_kernel,
        )
        return kernels[backward], {}
    kernels = emission_log_prob_fwd_kernel, emission_log_prob_bwd_kernel
    return kernels[backward], {"HEAD": head, "NARROW": head in ("poisson", "negative_binomial")}


def _passes(head: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return partial(_value, head), partial(_gradients, head)


emission_log_prob, emission_log_prob_backward = _passes("bernoulli")
gaussian_emission_log_prob, gaussian_emission_log_prob_backward = _passes("normal")
poisson_emission_log_prob, poisson_emission_log_prob_backward = _passes("poisson")
negative_binomial_emission_log_prob, negative_binomial_emission_log_prob_backward = _passes(
    "negative_binomial"
)
categorical_emission_log_prob, categorical_emission_log_prob_backward = _passes("categorical")
