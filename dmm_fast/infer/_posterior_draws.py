"""Draws of latents from the posterior, reconstruction and imputation, public as :mod:`dmm_fast.infer`."""

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
    """A draw of z_{1:T} from the posterior, with the Gaussian of each z_t; zero past the end of a row.

    Each field is ``[B, T, Z]``, or ``[S, B, T, Z]`` for S draws. ``loc`` and ``scale`` (a standard deviation)
    are those of the Gaussian q(z_t | z_{t-1}, x) given the drawn z_{t-1}, on which those of a mean-field
    guide do not depend. If the guide has normalizing flows, they belong to the Gaussian before the flows,
    while ``z`` is the result of the flows.

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
    """Draws of the latents given data, with the mean and scale of each step's distribution.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``.
        num_samples: number of draws ``S`` for each sequence, all in one pass; None: one, without that
            dimension.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
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

    Missing values are filled in; the result is zero past the end of a row.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``.
        num_samples: number of draws ``S``, all in one pass, for a result ``[S, B, T, D]`` whose mean over
            draws estimates E[x | data]; None: one, without that dimension.
        mean: return the emission's mean; False: a draw from the emission, that is from the posterior
            predictive.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.
        NotImplementedError: the emission's mean has no closed form; ``mean=False`` does not need it.
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
    """``[B, T, D]``: the data with a draw in place of each missing value within a row.

    z_{1:T} is drawn from the posterior given the observed values, and missing values from the emission at
    that draw. Observed values are unchanged, and the result is zero past the end of a row. If the features of
    a step depend on one another given z_t, as in a NADE emission, the draw is not conditioned on the observed
    features of its step, except through z_t.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``.
        num_samples: number of draws ``S``, all in one pass, for a result ``[S, B, T, D]``; None: one, without
            that dimension.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``num_samples`` or ``seed`` is out of range, or the batch does not fit the model.

    Source: multiple imputation, as for DMMs in arXiv 1609.09869, section 6.
    """
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        x = _emission_at(dmm, drawn, checked).sample()
        assert checked.x is not None  # the guide requires data
        return torch.where(checked.observed, checked.x, x)


def posterior_draw(dmm: DMM, batch: Batch, num_samples: int | None) -> tuple[Latents, MiniBatch]:
    """A draw, or ``num_samples`` draws, and the checked batch."""
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
