"""The weights of the log-densities of a few sites in an ELBO, and their sum, in one launch each."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import on_device_of
from dmm_fast.triton.rows import decoded, encoded


class _Term(NamedTuple):
    """A site: its dense elements, and a scale on the device, or None.

    ``sign`` includes a scale that is a number on the host; ``size`` is encoded.
    """

    numbers: Any
    scale: Any
    sign: Any
    size: int


def gradients_of(terms: list[tuple[Tensor, float | Tensor, int]], num_particles: int) -> list[Tensor]:
    """The gradients with respect to each term of the negative sum of ``sign * scale * term / num_particles``.

    Of a term only shape, dtype and device are used.
    """
    made = [torch.empty(like.shape, dtype=like.dtype, device=like.device) for like, _, _ in terms]
    taken = tuple(_term(to, scale, sign) for to, (_, scale, sign) in zip(made, terms, strict=True))
    with on_device_of(made[0]):
        elbo_gradients_kernel[(1,)](taken, TERMS=len(taken), PARTICLES=num_particles, BLOCK=256)
    return made


def loss_of(terms: list[tuple[Tensor, float | Tensor, int]]) -> Tensor:
    """The negative sum of ``sign * scale * log_prob``, in float64."""
    loss = torch.empty((), dtype=torch.float64, device=terms[0][0].device)
    taken = tuple(_term(log_prob.contiguous(), scale, sign) for log_prob, scale, sign in terms)
    with on_device_of(loss):
        elbo_kernel[(1,)](taken, loss, TERMS=len(taken), BLOCK=256)
    return loss


def _term(numbers: Tensor, scale: float | Tensor, sign: int) -> _Term:
    on_device = isinstance(scale, Tensor)
    weight = tl.constexpr(float(sign if on_device else sign * scale))
    return _Term(numbers, scale if on_device else None, weight, encoded(numbers.numel()))


@triton.jit
def weight_of(term):  # type: ignore[no-untyped-def]
    """The factor of a term, in float64."""
    weight = tl.full((), term.sign, tl.float64)
    if term.scale is not None:
        weight *= tl.load(term.scale).to(tl.float64)
    return weight


@triton.jit
def elbo_gradients_kernel(terms, TERMS: tl.constexpr, PARTICLES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the gradients of each term, a block of elements at a time."""
    for i in tl.static_range(TERMS):
        term = terms[i]
        gradient = (tl.zeros((BLOCK,), tl.float64) - weight_of(term) / PARTICLES).to(tl.float32)
        first = 0
        while first < decoded(term.size):
            place = first + tl.arange(0, BLOCK)
            inside = place < decoded(term.size)
            tl.store(term.numbers + place, gradient.to(term.numbers.dtype.element_ty), mask=inside)
            first += BLOCK


@triton.jit
def elbo_kernel(terms, loss, TERMS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum each term, a block of elements at a time."""
    total = tl.full((), 0.0, tl.float64)
    for i in tl.static_range(TERMS):
        term = terms[i]
        acc = tl.zeros((BLOCK,), tl.float64)
        first = 0
        while first < decoded(term.size):
            place = first + tl.arange(0, BLOCK)
            inside = place < decoded(term.size)
            acc += tl.load(term.numbers + place, mask=inside, other=0.0).to(tl.float64)
            first += BLOCK
        total -= weight_of(term) * tl.sum(acc, 0)
    tl.store(loss, total)
