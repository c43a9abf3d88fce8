"""Drawing the posterior chain z_{1:T}, forward in time, and its gradient.

A step has two launches: one from the latents of all rows to the hidden units, one from these to latents.
"""

import torch
from torch import Tensor

from dmm_fast.reference import CombinerWeights
from dmm_fast.triton import combiner_steps, scan
from dmm_fast.triton.combiner import Sizes
from dmm_fast.triton.combiner_steps import Drawn
from dmm_fast.triton.common import on_device_of
from dmm_fast.triton.rows import constants, rows_of, steps_of
from dmm_fast.triton.step_gradients import combiner_gradients


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: list[Tensor], lengths: Tensor, keep_g: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``z, loc, pre_scale``, each ``[P, B, T, Z]``, and for the backward pass ``g [P, B, T, H]`` in float32.

    All are zero past the end of each row. Without ``keep_g``, ``g`` is empty.
    """
    P, B, T, Z = eps.shape
    H, rows = h.shape[-1], P * B
    w = CombinerWeights(*scan.stored_by_inputs(weights))
    out = Drawn(*(eps.new_empty((P, B, T, Z)) for _ in range(3)))
    g = eps.new_empty((P, B, T, H) if keep_g else (0,), dtype=torch.float32)
    if out.z.numel():
        z, c = scan.started(z_q_0, eps), eps.new_empty((rows, H), dtype=torch.float32)
        steps, size = steps_of(eps, lengths), constants(Sizes(Z, H))
        with on_device_of(eps):
            kept = g if keep_g else None
            combine = scan.launcher(
                combiner_steps.combine_kernel, rows, H, Z, w, z, rows_of(h), c, kept, steps, size=size
            )
            draw = scan.launcher(
                combiner_steps.draw_kernel, rows, Z, H, w, c, rows_of(eps), z, out, steps, size=size
            )
            for t in range(T):
                combine(t)
                draw(t)
    return *out, g


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
    P, B, T, Z = eps.shape
    H, rows = h.shape[-1], P * B
    g, out = g.contiguous(), combiner_steps.gradients_for(h, eps)
    if rows:
        w, steps, size = combiner_steps.backward_weights(weights), steps_of(eps, lengths), Sizes(Z, H)
        options = {"size": constants(size)}
        incoming = combiner_steps.Incoming(rows_of(dz), rows_of(dloc), rows_of(dpre_scale))
        given = (w, incoming, rows_of(eps), rows_of(pre_scale), out, steps)
        with on_device_of(eps):
            draw = scan.launcher(draw_bwd_kernel, rows, Z, H, *given, **options)
            combine = scan.launcher(
                combiner_steps.combine_bwd_kernel, rows, H, 2 * Z, w, g, out, steps, **options
            )
            for t in reversed(range(T)):
                draw(t)
                combine(t)
            scan.launcher(combiner_steps.starts_bwd_kernel, rows, Z, H, w, out, steps, **options)()
    dz_q_0, *dweights = combiner_gradients(out.da, out.dout, out.dz_q_0, g, h, z, z_q_0, lengths)
    return out.dh, out.deps, dz_q_0, dweights


@scan.step_kernel
def draw_bwd_kernel(w, incoming, eps, pre_scale, out, steps, t, blocks, size):  # type: ignore[no-untyped-def]
    """Compute ``deps`` and ``dout`` of step ``t`` from the gradient of a tile of its latents.

    Reads the gradients ``incoming``, eps and pre_scale [P, B, T, Z] at valid steps, and ``da`` of the step
    after, as written by :func:`~dmm_fast.triton.combiner_steps.combine_bwd_kernel`.
    """
    row, exists, length, columns = scan.tile_of_step(steps, blocks)
    dz = combiner_steps.by_latents(w, incoming, out, steps, row, t, length, columns, size, blocks)
    combiner_steps.draw_backward(
        dz, incoming, eps, pre_scale, out, steps, row, t, columns, exists, t < length, size
    )
