"""Draws from the posterior, and of data within the sequences, public as :mod:`dmm_fast.infer`."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast import check
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import SequenceDistribution
from dmm_fast.infer._evaluation import Batch, check_batch
from dmm_fast.infer._randomness import drawing
from dmm_fast.model import DMM


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
def latents(
    dmm: DMM,
    batch: Batch,
    num_samples: int | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Latents:
    """Draws of the latents given data, with means and scales of the steps they were drawn from.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_samples: draws ``S`` for each sequence, all in one pass; None: one, without a dimension for it.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.
    """
    with drawing(dmm, seed, generator):
        return posterior_draw(dmm, batch, num_samples)[0]


@torch.no_grad()
def reconstruct(
    dmm: DMM,
    batch: Batch,
    num_samples: int | None = None,
    *,
    mean: bool = True,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``[B, T, D]``: the emission's mean (probabilities, for a Bernoulli) at one posterior draw.

    Missing values are filled in; past the end of a row it is zero.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_samples: draws ``S``, all in one pass, for a result ``[S, B, T, D]`` whose mean over draws
            estimates E[x | data]; None: one.
        mean: whether it is the emission's mean, or else a draw from the emission: the posterior predictive.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.
        NotImplementedError: the emission has no closed form for its mean; with ``mean=False`` it needs none.
    """
    check.kind("mean", mean, bool)
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        emission = _emission_at(dmm, drawn, checked)
        return emission.mean if mean else emission.sample()


@torch.no_grad()
def impute(
    dmm: DMM,
    batch: Batch,
    num_samples: int | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``[B, T, D]``: the data with a draw in place of each value that is missing within a row.

    z_{1:T} is drawn from the posterior given what is observed, and missing values from the emission at that
    draw; what is observed stays as it is, and past the end of a row it is zero. Where the features of a step
    depend on each other given z_t, as in a NADE emission, this is not given the observed ones of that step
    but for what z_t knows of them.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_samples: draws ``S``, all in one pass, for a result ``[S, B, T, D]``; None: one.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.

    Source: multiple imputation, as for DMMs in arXiv 1609.09869, section 6.
    """
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        x = _emission_at(dmm, drawn, checked).sample()
        assert checked.x is not None  # or there would be no posterior
        return torch.where(checked.observed, checked.x, x)


def posterior_draw(dmm: DMM, batch: Batch, num_samples: int | None) -> tuple[Latents, MiniBatch]:
    """A draw, or ``num_samples`` of them, and the batch that it is of."""
    check_batch(dmm, batch)
    shape = () if num_samples is None else (check.size("num_samples", num_samples),)
    checked = dmm.mini_batch(*batch)
    if checked.x is None:
        check.fail("batch", "data to condition on", "None")
    posterior = dmm.posterior(dmm.encode(checked), checked.lengths)
    z = posterior.rsample(shape)
    draw = posterior.last_draw
    scale = torch.where(checked.valid.unsqueeze(-1), F.softplus(draw.pre_scale), 0.0)
    return Latents(draw.loc, scale, z), checked


def _emission_at(dmm: DMM, drawn: Latents, checked: MiniBatch) -> SequenceDistribution:
    return dmm.emission(dmm.emission_inputs(drawn.z, checked), checked.lengths)
