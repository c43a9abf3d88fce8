"""The ELBO of the log-densities of a few sites, and its gradients by them, in one launch."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import on_device_of
from dmm_fast.triton.rows import decoded, encoded


class _Term(NamedTuple):
    """A site: dense log-densities, their gradients, a number on the device to scale them by, or None.

    ``sign`` is times what scale there is on the host; ``size`` is encoded.
    """

    log_prob: Any
    gradient: Any
    scale: Any
    sign: Any
    size: int


def loss_and_gradients(
    terms: list[tuple[Tensor, float | Tensor, int]], num_particles: int
) -> tuple[Tensor, list[Tensor]]:
    """The negative sum of ``log_prob, scale, sign``, in float64, and its gradients over ``num_particles``."""
    device = terms[0][0].device
    loss = torch.empty((), dtype=torch.float64, device=device)
    made = []
    for log_prob, scale, sign in terms:
        held = log_prob.contiguous()
        on_device = isinstance(scale, Tensor)
        weight = tl.constexpr(float(sign if on_device else sign * scale))
        size = encoded(held.numel())
        made.append(_Term(held, torch.empty_like(held), scale if on_device else None, weight, size))
    with on_device_of(loss):
        elbo_kernel[(1,)](tuple(made), loss, TERMS=len(made), PARTICLES=num_particles, BLOCK=256)
    return loss, [term.gradient for term in made]


@triton.jit
def elbo_kernel(terms, loss, TERMS: tl.constexpr, PARTICLES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each term's sum and gradients, a block of numbers at a time."""
    total = tl.full((), 0.0, tl.float64)
    for i in tl.static_range(TERMS):
        term = terms[i]
        weight = tl.full((), term.sign, tl.float64)
        if term.scale is not None:
            weight *= tl.load(term.scale).to(tl.float64)
        acc = tl.zeros((BLOCK,), tl.float64)
        first = 0
        while first < decoded(term.size):
            place = first + tl.arange(0, BLOCK)
            inside = place < decoded(term.size)
            acc += tl.load(term.log_prob + place, mask=inside, other=0.0).to(tl.float64)
            gradient = (tl.zeros((BLOCK,), tl.float64) - weight / PARTICLES).to(tl.float32)
            tl.store(term.gradient + place, gradient.to(term.gradient.dtype.element_ty), mask=inside)
            first += BLOCK
        total -= weight * tl.sum(acc, 0)
    tl.store(loss, total)
