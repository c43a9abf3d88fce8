"""Draws from the posterior and from the model, public as :mod:`dmm_fast.infer`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast import check
from dmm_fast.infer._evaluation import Batch, check_batch, evaluating
from dmm_fast.model import DMM
from dmm_fast.reference import valid_steps

_LARGEST_SEED = (1 << 64) - 1


class Latents(NamedTuple):
    """A draw of z_{1:T} from the posterior, and what each z_t was drawn from; zero past the end of a row.

    Each is ``[B, T, Z]``, or ``[S, B, T, Z]`` for S draws. ``loc`` and ``scale`` (a standard deviation) are
    those of q(z_t | z_{t-1}, x), a Gaussian, given the drawn z_{t-1}; a mean-field guide's do not depend on
    that. Where the guide has normalizing flows they are of the Gaussian before the flows, while ``z`` has
    gone through them.

    In a structured guide the posterior of z_t alone has no closed form. Without flows its mean is estimated
    by the mean of ``loc`` over draws, its variance by the mean of ``scale ** 2`` plus the variance of ``loc``
    over draws; in a mean-field guide they are ``loc`` and ``scale ** 2``.
    """

    loc: Tensor
    scale: Tensor
    z: Tensor


@torch.no_grad()
def latents(dmm: DMM, batch: Batch, num_samples: int | None = None, *, seed: int | None = None) -> Latents:
    """Draws of the latents given data, with means and scales of the steps they were drawn from.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_samples: draws ``S`` for each sequence, all in one pass; None: one, without a dimension for it.
        seed: of this call's random numbers; None: they are those of torch's global generator.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.
    """
    with _drawing(dmm, seed):
        return _posterior_draw(dmm, batch, num_samples)[0]


@torch.no_grad()
def reconstruct(dmm: DMM, batch: Batch, num_samples: int | None = None, *, seed: int | None = None) -> Tensor:
    """``[B, T, D]``: the emission's mean (probabilities, for a Bernoulli) at one posterior draw.

    Missing values are filled in; past the end of a row it is zero.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_samples: draws ``S``, all in one pass, for a result ``[S, B, T, D]`` whose mean over draws
            estimates E[x | data]; None: one.
        seed: of this call's random numbers; None: they are those of torch's global generator.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.
    """
    with _drawing(dmm, seed):
        drawn, lengths = _posterior_draw(dmm, batch, num_samples)
        return dmm.emission(drawn.z, lengths).mean


@torch.no_grad()
def forecast(
    dmm: DMM,
    batch: Batch,
    num_steps: int,
    num_samples: int | None = None,
    quantiles: Iterable[float] | None = None,
    *,
    seed: int | None = None,
) -> Tensor:
    """``[B, num_steps, D]``: a draw of what follows each sequence, from its own end on.

    z_{1:T} is drawn from the posterior given the prefix, the transition carries its last step
    forward, and x is drawn from the emission.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_steps: time steps to draw.
        num_samples: draws ``S`` for each sequence, all in one pass, for a result ``[S, B, num_steps, D]``; of
            notes, its mean over draws estimates their probabilities. None: one.
        quantiles: ``Q`` probabilities between 0 and 1. With them the result is ``[Q, B, num_steps, D]``, the
            quantiles of the ``num_samples`` draws for each value by itself, interpolated linearly.
        seed: of this call's random numbers; None: they are those of torch's global generator.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count is not positive, a number is out of range, ``quantiles`` come without
            ``num_samples``, or the batch does not fit the model.
    """
    num_steps = check.size("num_steps", num_steps)
    probabilities = None if quantiles is None else _checked_quantiles(quantiles)
    if probabilities is not None and num_samples is None:
        check.fail("num_samples", "a positive int with quantiles", "None")
    with _drawing(dmm, seed):
        drawn, lengths = _posterior_draw(dmm, batch, num_samples)
        last = (lengths - 1)[:, None, None].expand(*drawn.z.shape[:-2], 1, drawn.z.shape[-1])
        x = _roll_out(dmm, drawn.z.gather(-2, last).squeeze(-2), num_steps)
    if probabilities is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.quantile(wide, wide.new_tensor(probabilities), dim=0).to(x.dtype)


@torch.no_grad()
def generate(dmm: DMM, num_sequences: int, num_steps: int, *, seed: int | None = None) -> Tensor:
    """``[num_sequences, num_steps, D]``: independent draws from the model itself.

    Args:
        dmm: the model.
        num_sequences: sequences to draw.
        num_steps: time steps of each.
        seed: of this call's random numbers; None: they are those of torch's global generator.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count is not positive, or ``seed`` is out of range.
    """
    num_sequences = check.size("num_sequences", num_sequences)
    num_steps = check.size("num_steps", num_steps)
    with _drawing(dmm, seed):
        return _roll_out(dmm, dmm.z_0.expand(num_sequences, -1), num_steps)


@contextmanager
def _drawing(dmm: DMM, seed: int | None) -> Iterator[None]:
    """Without dropout and, with a ``seed``, with random numbers of its own."""
    check.kind("dmm", dmm, DMM)
    if seed is None:
        with evaluating(dmm):
            yield
        return
    seed = check.integer("seed", seed, "an int from 0")
    if not 0 <= seed <= _LARGEST_SEED:
        expected = "an int from 0" if seed < 0 else "an int below 2 ** 64"
        check.fail("seed", expected, check.describe(seed).removeprefix("int "))
    device = dmm.z_0.device
    with evaluating(dmm), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Those generators alone: torch.manual_seed would seed every GPU.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _posterior_draw(dmm: DMM, batch: Batch, num_samples: int | None) -> tuple[Latents, Tensor]:
    """A draw, or ``num_samples`` of them, and the lengths of the rows."""
    check_batch(dmm, batch)
    shape = () if num_samples is None else (check.size("num_samples", num_samples),)
    checked = dmm.mini_batch(*batch)
    if checked.x is None:
        check.fail("batch", "data to condition on", "None")
    posterior = dmm.posterior(dmm.encode(checked), checked.lengths)
    z = posterior.rsample(shape)
    draw = posterior.last_draw
    scale = torch.where(
        valid_steps(checked.lengths, checked.T).unsqueeze(-1), F.softplus(draw.pre_scale), 0.0
    )
    return Latents(draw.loc, scale, z), checked.lengths


def _roll_out(dmm: DMM, z_prev: Tensor, num_steps: int) -> Tensor:
    """X drawn over ``num_steps`` steps of the prior chain that leaves from ``z_prev [..., B, Z]``."""
    steps = []
    for _ in range(num_steps):
        loc, scale = dmm.trans(z_prev)
        z_prev = loc + scale * torch.randn_like(loc)
        steps.append(z_prev)
    lengths = torch.full(z_prev.shape[-2:-1], num_steps, dtype=torch.int64, device=z_prev.device)
    return dmm.emission(torch.stack(steps, dim=-2), lengths).sample()


def _checked_quantiles(quantiles: Any) -> list[float]:
    """The probabilities as Python's numbers."""
    expected = "a sequence of probabilities between 0 and 1"
    if isinstance(quantiles, Tensor):
        quantiles = check.dense("quantiles", quantiles).tolist()
    given = [check.probability("quantiles", q) for q in check.elements("quantiles", quantiles, expected)]
    if not given:
        check.fail("quantiles", "at least one probability", "none")
    return given
