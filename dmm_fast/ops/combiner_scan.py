"""Drawing the posterior chain z_{1:T}, forward in time."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled, derivatives
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.combiner import check_combiner_weights
from dmm_fast.ops.layout import fresh, joint, particles, starts_of_scan
from dmm_fast.reference import CombinerWeights

_pick = backend.reference_op("combiner_scan", reference.combiner_scan)


@in_float32
def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draw ``z_t = loc_t + softplus(pre_scale_t) eps_t`` with ``loc, pre_scale`` from the combiner.

    ``c_t = (tanh(W_z z_{t-1} + b_z) + h_t) / 2``, ``loc_t = W_loc c_t + b_loc``,
    ``pre_scale_t = W_scale c_t + b_scale``. The pre-activation is returned in place of the scale:
    from it the log-density stays finite where the scale underflows.

    Where autograd may ask for a gradient, a compiled backend keeps the tanh of every step for the backward
    pass, ``[..., B, T, H]``; without one, as under ``torch.no_grad``, it does not.

    Args:
        h: ``[..., B, T, H]``, what the inference network gives; broadcasts with ``eps`` on the particle
            dimensions, so that ``[B, T, H]`` is for all particles.
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_q_0: what z_0 stands for in the guide; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the combiner.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z, loc, pre_scale``, each ``[..., B, T, Z]`` and zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``eps`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 4 (structured inference, DKS).
    """
    B, T, Z = check.sequences("eps", eps)
    sizes = check_combiner_weights(weights, eps, "eps", Z)
    check.like("h", h, eps, "eps")
    check.trailing("h", h, (B, T, sizes["H"]), "[..., B, T, H]")
    check.leading("h", h, eps.shape[:-3], 3, "eps")
    check.like("z_q_0", z_q_0, eps, "eps")
    lead = joint(eps.shape[:-2], h.shape[:-2])
    check.broadcastable("z_q_0", z_q_0, (*lead, Z), "[..., B, Z]")
    check.lengths(lengths, B, T, eps.device)
    return _pick(eps)(h, eps, z_q_0, weights, lengths)


def _compute(
    library: Any, h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    lead = joint(eps.shape[:-2], h.shape[:-2])
    start = starts_of_scan(library, z_q_0, lead, eps.shape[-1])
    # What is large and what only the backward reads is not kept for an evaluation.
    keep_g = derivatives.may_be_recorded(h, eps, z_q_0, *weights)
    z, loc, pre_scale, _ = library.combiner_scan(
        particles(h, lead, 2), particles(eps, lead, 2), start, *weights, lengths, keep_g
    )
    shape = (*lead, *eps.shape[-2:])
    return z.reshape(shape), loc.reshape(shape), pre_scale.reshape(shape)


def _fake(h: Tensor, eps: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, keep_g = others
    g = h.new_empty(h.shape if keep_g else (0,), dtype=torch.promote_types(h.dtype, torch.float32))
    return *fresh(eps, eps, eps), g


def _fake_backward(
    dz: Tensor,
    dloc: Tensor,
    dpre_scale: Tensor,
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    z: Tensor,
    pre_scale: Tensor,
    g: Tensor,
    w_z: Tensor,
    w_loc: Tensor,
    w_scale: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, ...]:
    layers = [(w, w.new_empty(w.shape[:1])) for w in (w_z, w_loc, w_scale)]
    return fresh(h, eps, z_q_0, *chain.from_iterable(layers))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    h, eps, z_q_0, w_z, _, w_loc, _, w_scale, _, lengths, _ = inputs
    z, _, pre_scale, g = output
    ctx.mark_non_differentiable(g)
    ctx.set_materialize_grads(False)  # autograd would make zeros for g too
    ctx.save_for_backward(h, eps, z_q_0, z, pre_scale, g, w_z, w_loc, w_scale, lengths)


def _backward(library: Any, ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    like = saved[3]  # z
    grads = [like.new_zeros(like.shape) if grad is None else grad for grad in incoming[:3]]
    return (*library.combiner_scan_backward(*grads, *saved), None, None)


compiled.differentiate("combiner_scan", "combiner_scan", _fake, _fake_backward, _save, _backward)
compiled.provide("combiner_scan", "combiner_scan", _compute)
