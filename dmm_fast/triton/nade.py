"""A NADE on top of the emitter's hidden layers: its log-density, forward and backward, and its draws.

    logit_d = b_d + w_read_d . sigmoid(a_d)    a_{d+1} = a_d + x_d w_write_d    b and a_1 from the emitter

The emitter's launches compute b and a_1 and backpropagate their gradients. Here a program has a block of rows
with their states in registers and processes the features one by one. In the backward pass, the state that a
feature reads is recomputed from the last stored one; a state is stored for every few features. Subtracting
the contributions of features instead would lose accuracy.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton import emitter, rows, sums, tiles, tuning
from dmm_fast.triton.common import cdiv, next_power_of_2, on_device_of, sigmoid
from dmm_fast.triton.densities import bernoulli_log_density, bernoulli_slope
from dmm_fast.triton.layers import in_parts

KEPT = 8
"""Number of features between stored states."""


class Nade(NamedTuple):
    """The weights ``[D, U]``, contiguous, with their sizes and the next power of two from U as constants."""

    read: Any
    write: Any
    D: Any
    U: Any
    BLOCK_U: Any


def nade_of(w_read: Tensor, w_write: Tensor) -> Nade:
    """The weights as an argument of the kernels."""
    D, U = w_read.shape
    sizes = (tl.constexpr(size) for size in (D, U, next_power_of_2(U)))
    return Nade(w_read.contiguous(), w_write.contiguous(), *sizes)


@triton.jit
def weight(w, d, units, U):  # type: ignore[no-untyped-def]
    """``[1, units]``: a feature's row of a weight."""
    return tl.load(w + d * U + units, mask=units < U, other=0.0).to(tl.float32)[None, :]


@triton.jit
def feature(x_row, mask, steps, row, step, valid, d):  # type: ignore[no-untyped-def]
    """A bool, True if feature ``d`` of each row is observed, and its value, 0 if not."""
    keep = valid
    if mask is not None:
        entry = rows.entry_at(mask, row % rows.decoded(steps.batch), step, d)
        keep &= tl.load(entry, mask=valid, other=0) != 0
    return keep, tl.load(x_row + d, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def logit_of(logits_row, a, w_read, valid, d):  # type: ignore[no-untyped-def]
    """The logit of feature ``d`` of each row by its state."""
    own = tl.load(logits_row + d, mask=valid, other=0.0).to(tl.float32)
    return own + tl.sum(sigmoid(a) * w_read, 1)


@rows.rowwise_kernel
def nade_fwd_kernel(  # type: ignore[no-untyped-def]
    w, x, logits, state, steps, mask, terms, first, BLOCK_M: tl.constexpr
):
    """A block of steps: terms [P, B, T] is the log-density of the observed entries of each step."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, _, valid = rows.every_place(steps, index)
    x_row, units = rows.at(x, steps, row, step), tl.arange(0, w.BLOCK_U)
    a = rows.load_row(state + index * w.U, units, w.U, valid)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, w.D):
        keep, value = feature(x_row, mask, steps, row, step, valid, d)
        logit = logit_of(logits + index * w.D, a, weight(w.read, d, units, w.U), valid, d)
        total += tl.where(keep, bernoulli_log_density(value, logit), 0.0)
        a += value[:, None] * weight(w.write, d, units, w.U)
    tl.store(terms + index, total, mask=valid)


@rows.rowwise_kernel
def nade_bwd_kernel(  # type: ignore[no-untyped-def]
    w, dout, x, logits, state, steps, mask, kept, partial, dlogits, dstate, dx, terms, first,
    BLOCK_M: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """A block of steps, from dout [P, B]: gradients of logits, state, and x unless dx is None.

    Also writes the program's partial sums of the gradients of both weights to partial [programs, 2, D, U],
    and the log-density of each step to terms [P, B, T] unless it is None. ``kept`` is scratch for states.
    """
    index = rows.block_of_places(first, BLOCK_M)
    row, step, inside, valid = rows.every_place(steps, index)
    x_row, units = rows.at(x, steps, row, step), tl.arange(0, w.BLOCK_U)
    slopes = dlogits + index * w.D
    states = kept + (index - first) * (tl.cdiv(w.D, KEPT) * w.U)
    given = tl.load(rows.entry_at(dout, row // rows.decoded(steps.batch), row % rows.decoded(steps.batch), 0),
                    mask=valid, other=0.0).to(tl.float32)  # fmt: skip
    a = rows.load_row(state + index * w.U, units, w.U, valid)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, w.D):
        if d % KEPT == 0:
            rows.store_row(states + d // KEPT * w.U, units, w.U, valid, a)
        keep, value = feature(x_row, mask, steps, row, step, valid, d)
        logit = logit_of(logits + index * w.D, a, weight(w.read, d, units, w.U), valid, d)
        tl.store(slopes + d, tl.where(keep, given * bernoulli_slope(value, logit), 0.0), mask=valid)
        if dx is not None:
            by_x = tl.where(keep, given * logit, 0.0).to(dx.dtype.element_ty)
            tl.store(dx + index * w.D + d, by_x, mask=inside)
        if terms is not None:
            total += tl.where(keep, bernoulli_log_density(value, logit), 0.0)
        a += value[:, None] * weight(w.write, d, units, w.U)
    if terms is not None:
        tl.store(terms + index, total, mask=valid)
    tl.debug_barrier()
    own = partial + tl.program_id(0).to(tl.int64) * (2 * w.D * w.U) + units
    da = tl.zeros((BLOCK_M, w.BLOCK_U), tl.float32)
    for back in range(0, w.D):
        d = w.D - 1 - back
        a = rows.load_row(states + d // KEPT * w.U, units, w.U, valid)
        earlier = d // KEPT * KEPT
        while earlier < d:
            _, value = feature(x_row, mask, steps, row, step, valid, earlier)
            a += value[:, None] * weight(w.write, earlier, units, w.U)
            earlier += 1
        keep, value = feature(x_row, mask, steps, row, step, valid, d)
        tl.store(own + (w.D + d) * w.U, tl.sum(value[:, None] * da, 0), mask=units < w.U)
        if dx is not None:
            to = dx + index * w.D + d
            by_x = tl.load(to, mask=keep, other=0.0).to(tl.float32)
            by_x += tl.sum(da * weight(w.write, d, units, w.U), 1)
            tl.store(to, by_x.to(dx.dtype.element_ty), mask=keep)
        slope, read = tl.load(slopes + d, mask=valid, other=0.0)[:, None], sigmoid(a)
        tl.store(own + d * w.U, tl.sum(slope * read, 0), mask=units < w.U)
        da += slope * weight(w.read, d, units, w.U) * read * (1.0 - read)
    rows.store_row(dstate + index * w.U, units, w.U, valid, da)


@rows.rowwise_kernel
def nade_draw_kernel(  # type: ignore[no-untyped-def]
    w, u, logits, state, steps, out, first, BLOCK_M: tl.constexpr
):
    """A block of rows of out [N, D]: feature by feature, 1 if u is below its probability, else 0."""
    index = rows.block_of_places(first, BLOCK_M)
    row, step, valid = rows.places(steps, index)
    u_row, logits_row = rows.at(u, steps, row, step), rows.at(logits, steps, row, step)
    units = tl.arange(0, w.BLOCK_U)
    a = rows.load_row(rows.at(state, steps, row, step), units, w.U, valid)
    for d in range(0, w.D):
        logit = logit_of(logits_row, a, weight(w.read, d, units, w.U), valid, d)
        is_one = tl.load(u_row + d, mask=valid, other=1.0).to(tl.float32) < sigmoid(logit)
        drawn = tl.where(is_one, 1.0, 0.0)
        tl.store(out + index * w.D + d, drawn.to(out.dtype.element_ty), mask=valid)
        a += drawn[:, None] * weight(w.write, d, units, w.U)


def _heads(z: Tensor, weights: list[Tensor], steps: rows.Steps) -> tuple[Tensor, Tensor]:
    """The logits ``[P, B, T, D]`` and the initial state ``[P, B, T, U]`` of the valid steps."""
    logits, state = (
        z.new_empty((*z.shape[:3], head.shape[0]), dtype=torch.float32) for head in weights[4:8:2]
    )
    heads = (tiles.features_of(logits), tiles.features_of(state))
    emitter.forward(
        emitter.emitter_fwd_kernel, weights[:8], z.shape[:3].numel(), rows.rows_of(z), steps, heads
    )
    return logits, state


def nade_emission_log_prob(
    x: Tensor, z: Tensor, weights: list[Tensor], lengths: Tensor, mask: Tensor | None
) -> Tensor:
    """``[P, B]``: the sum over observed entries of log p(x_t | z_t)."""
    terms, steps = sums.terms_of(z), rows.steps_of(z, lengths)
    logits, state = _heads(z, weights, steps)
    given = (nade_of(*weights[8:]), rows.rows_of(x), logits, state, steps, rows.entries_of(mask), terms)
    rows.launch(nade_fwd_kernel, terms.numel(), z, *given)
    return sums.sum_steps(terms, z, lengths)


def nade_emission_log_prob_backward(
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
    dx, dz = x.new_empty(x.shape if with_dx else (0,)), z.new_empty(z.shape)
    steps, terms = rows.steps_of(z, lengths), sums.terms_of(z) if with_out else None
    logits, state = _heads(z, weights, steps)
    dlogits, dstate = torch.empty_like(logits), torch.empty_like(state)
    given = (sums.incoming(dout), rows.rows_of(x), logits, state, steps, rows.entries_of(mask))
    made = (dlogits, dstate, dx if with_dx else None, terms)
    of_nade = _weight_gradients(nade_of(*weights[8:]), given, made)
    heads = (rows.rows_of(dlogits), rows.rows_of(dstate))
    of_emitter = emitter.gradients(
        *(emitter.emitter_bwd_kernel, weights[:8], z.shape[:3].numel(), rows.rows_of(z), steps, dz, heads),
        cleared=(tiles.features_of(dz),),
    )
    # The results of an op must not share memory.
    return (
        dx,
        dz,
        [*of_emitter, *(w.to(z.dtype, copy=True) for w in of_nade)],
        sums.sum_steps(terms, z, lengths),
    )


def _weight_gradients(nade: Nade, given: tuple[Any, ...], made: tuple[Tensor | None, ...]) -> Tensor:
    """``[2, D, U]``: the gradients of both weights; the others are written to the tensors ``made``."""
    state = given[3]
    D, U = nade.D.value, nade.U.value
    total = torch.zeros((2, D, U), dtype=torch.float32, device=state.device)
    for first, size in in_parts(state.shape[:3].numel()) if state.numel() else ():
        config = tuning.by_rule(size)
        programs = cdiv(size, config.BLOCK_M)
        kept = state.new_empty(programs * config.BLOCK_M, cdiv(D, KEPT), U)
        partial = state.new_empty(programs, 2, D, U)
        with on_device_of(state):
            nade_bwd_kernel[(programs,)](
                nade, *given, kept, partial, *made, first, KEPT=KEPT, **config._asdict()
            )
        total += partial.sum(0)
    return total


def nade_draw(u: Tensor, logits: Tensor, state: Tensor, w_read: Tensor, w_write: Tensor) -> Tensor:
    """``x [N, D]``, 0 or 1."""
    out = logits.new_empty(logits.shape)
    of_rows = [tensor[None, :, None] for tensor in (u, logits, state)]
    given = (*map(rows.rows_of, of_rows), rows.steps_of(of_rows[0], None))
    rows.launch(nade_draw_kernel, len(u), u, nade_of(w_read, w_write), *given, out)
    return out
