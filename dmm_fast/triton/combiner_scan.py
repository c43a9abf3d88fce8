"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient.

A step has two halves with a barrier between them: from the latents of a block of rows to all their hidden
units, and from the hidden units back to the latents.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.reference import CombinerWeights
from dmm_fast.triton import combiner_steps, scan
from dmm_fast.triton.combiner import Sizes
from dmm_fast.triton.layers import copy_rows
from dmm_fast.triton.rows import at, constants, decoded, load_row, rows_of, steps_of, store_row
from dmm_fast.triton.step_gradients import combiner_gradients


class Drawn(NamedTuple):
    """The results of the forward pass, ``[P, B, T, Z]``, and the tanh ``[P, B, T, H]`` in float32 or None."""

    z: Any
    loc: Any
    pre_scale: Any
    g: Any


class State(NamedTuple):
    """Scratch for what a half of a step leaves for the next: ``[P B, Z]`` and ``[P B, H]`` in float32."""

    z: Any
    c: Any


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor, keep_g: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward ``g [P, B, T, H]`` in float32.

    All are zero past the end of each row. Without ``keep_g`` the last is empty.
    """
    P, B, T, Z = eps.shape
    H = h.shape[-1]
    w = CombinerWeights(*(weight.contiguous() for weight in weights))
    z, loc, pre_scale = (eps.new_empty((P, B, T, Z)) for _ in range(3))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    out = Drawn(z, loc, pre_scale, g if keep_g else None)
    state = State(*(eps.new_empty((P * B, width), dtype=torch.float32) for width in (Z, H)))
    given = (rows_of(h), rows_of(eps), rows_of(z_q_0), steps_of(eps, lengths))
    scan.launch(combiner_scan_fwd_kernel, P * B, eps, w, *given, out, state, **_constants(H, Z))
    return z, loc, pre_scale, g


def combiner_scan_backward(
    dz: Tensor,
    dloc: Tensor,
    dpre_scale: Tensor,
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    z: Tensor,
    pre_scale: Tensor,
    g: Tensor,
    weights: list[Tensor],
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """``dh, deps, dz_q_0`` and the gradients of the weights."""
    P, B, _, Z = eps.shape
    g, out = g.contiguous(), combiner_steps.gradients_for(h, eps)
    incoming = combiner_steps.Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
    given = (incoming, rows_of(eps), rows_of(pre_scale), g, steps_of(eps, lengths))
    w = combiner_steps.backward_weights(weights)
    scan.launch(combiner_scan_bwd_kernel, P * B, eps, w, *given, out, **_constants(h.shape[-1], Z))
    dz_q_0, *dweights = combiner_gradients(out.da, out.dout, out.dz_q_0, g, h, z, z_q_0, lengths)
    return out.dh, out.deps, dz_q_0, dweights


def _constants(H: int, Z: int) -> dict[str, tuple[Any, ...]]:
    return {"size": constants(Sizes(Z, H)), **combiner_steps.layer_constants(H, Z)}


@triton.jit
def combiner_scan_fwd_kernel(  # type: ignore[no-untyped-def]
    w, h, eps, z_q_0, steps, out, state, size, to_hidden, to_latents, BLOCK_M: tl.constexpr
):
    """A block of rows from the first step to the end of its longest.

    Reads h [P, B, T, H] and eps [P, B, T, Z] at valid steps, z_q_0 [P, B, Z] and the weights ``w``. Writes
    all of the :class:`Drawn` tensors ``out``, and the :class:`State` ``state``. ``to_hidden`` and
    ``to_latents`` are the blocks of layers with H and with Z outputs.
    """
    Z, H = size.Z, size.H
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    h_row, eps_row = at(h, steps, row, 0), at(eps, steps, row, 0)
    z_row, c_row = state.z + row * Z, state.c + row * H
    copy_rows(at(z_q_0, steps, row, 0), exists, z_row, Z, to_latents)
    scan.clear_past_longest(out.z, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.loc, steps, row, exists, longest, Z, to_latents.N)
    scan.clear_past_longest(out.pre_scale, steps, row, exists, longest, Z, to_latents.N)
    if out.g is not None:
        scan.clear_past_longest(out.g, steps, row, exists, longest, H, to_hidden.N)

    t = longest * 0
    while t < longest:
        active = t < length
        place = row * decoded(steps.steps) + t
        tl.debug_barrier()
        h_here = scan.at_step(h_row, h, t)
        combiner_steps.combine(w, z_row, h_here, c_row, out.g, place, exists, active, size, to_hidden)
        tl.debug_barrier()
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            noise = scan.at_step(eps_row, eps, t)
            z, loc, pre_scale = combiner_steps.draw(w, c_row, noise, columns, active, size, to_latents)
            store_row(z_row, columns, Z, active, z)
            combiner_steps.store_padded(out.z, place, columns, Z, exists, active, z)
            combiner_steps.store_padded(out.loc, place, columns, Z, exists, active, loc)
            combiner_steps.store_padded(out.pre_scale, place, columns, Z, exists, active, pre_scale)
        t += 1


@triton.jit
def combiner_scan_bwd_kernel(  # type: ignore[no-untyped-def]
    w, incoming, eps, pre_scale, g, steps, out, size, to_hidden, to_latents, BLOCK_M: tl.constexpr
):
    """A block of rows from the end of its longest back to what its chains started from.

    Reads the gradients ``incoming``, eps and pre_scale [P, B, T, Z], g [P, B, T, H] at valid steps, and the
    weights ``w``. Writes the gradients ``out``: through ``da`` and ``dout`` a half of a step has what the one
    before it left. These are the tuples of :mod:`dmm_fast.triton.combiner_steps`; the blocks are those of the
    forward kernel.
    """
    Z, H = size.Z, size.H
    row, exists, length, longest = scan.block_of_rows(steps, BLOCK_M)
    dz_row, dloc_row = at(incoming.dz, steps, row, 0), at(incoming.dloc, steps, row, 0)
    dpre_scale_row = at(incoming.dpre_scale, steps, row, 0)
    eps_row, pre_scale_row = at(eps, steps, row, 0), at(pre_scale, steps, row, 0)
    scan.clear_past_longest(out.dh, steps, row, exists, longest, H, to_hidden.N)
    scan.clear_past_longest(out.deps, steps, row, exists, longest, Z, to_latents.N)

    t = longest - 1
    while t >= 0:
        tl.debug_barrier()
        active, carried = t < length, t + 1 < length  # nothing comes back into a row's last step
        place = row * decoded(steps.steps) + t
        for n in range(0, Z, to_latents.N):
            columns = n + tl.arange(0, to_latents.N)
            dz = combiner_steps.by_latents(w, out.da + (place + 1) * H, carried, columns, size, to_latents)
            dz += load_row(scan.at_step(dz_row, incoming.dz, t), columns, Z, active)
            combiner_steps.draw_backward(
                dz,
                scan.at_step(dloc_row, incoming.dloc, t),
                scan.at_step(dpre_scale_row, incoming.dpre_scale, t),
                scan.at_step(pre_scale_row, pre_scale, t),
                scan.at_step(eps_row, eps, t),
                *(out, place, columns, exists, active, size),
            )
        tl.debug_barrier()
        combiner_steps.combine_backward(w, g, out, place, exists, active, size, to_hidden)
        t -= 1

    combiner_steps.starts_backward(w, steps, row, exists, length, out, size, to_latents)
