"""Draws from the model itself and forecasts, public as :mod:`dmm_fast.infer`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast._minibatch import MiniBatch
from dmm_fast.infer._chain import Start, Trajectory, checked_temperature, known_steps, roll_out
from dmm_fast.infer._evaluation import Batch
from dmm_fast.infer._posterior_draws import posterior_draw
from dmm_fast.infer._randomness import drawing
from dmm_fast.model import DMM


@torch.no_grad()
def generate(
    dmm: DMM,
    num_sequences: int,
    num_steps: int,
    *,
    controls: Tensor | None = None,
    static: Tensor | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``[N, num_steps, D]``: ``num_sequences`` N independent draws from the model itself.

    Args:
        dmm: the model.
        num_sequences: number of sequences to draw.
        num_steps: number of time steps of each.
        controls: ``[N, num_steps, U]`` for a model with ``control_dim`` U.
        static: ``[N, S]`` for a model with ``static_dim`` S.
        temperature: below 1, draws stay closer to the most probable values. It multiplies the scale of
            z_t given z_{t-1}, and divides the logits of a Bernoulli or NADE emission; with any other
            emission it must be 1.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count or ``temperature`` is not positive, ``seed`` is out of range, or ``controls``,
            ``static`` or ``temperature`` does not fit the model.
    """
    temperature = checked_temperature(temperature)
    num_sequences = check.size("num_sequences", num_sequences)
    num_steps = check.size("num_steps", num_steps)
    with drawing(dmm, seed, generator):
        steps = known_steps(dmm, num_sequences, num_steps, controls, static)
        return roll_out(dmm, Start(dmm.z_0.expand(num_sequences, -1)), steps, temperature).x


@torch.no_grad()
def sample_prior(
    dmm: DMM,
    num_steps: int,
    num_samples: int | None = None,
    *,
    controls: Tensor | None = None,
    static: Tensor | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Joint draws of latents and data from the model itself: ``z [..., T, Z]`` and ``x [..., T, D]``.

    Means over draws estimate the model's means, which have no closed form.

    Args:
        dmm: the model.
        num_steps: number of time steps ``T``.
        num_samples: number of draws ``S``, the leftmost dimension; None: one draw, without that dimension.
        controls: ``[T, U]``, or ``[B, T, U]`` for a dimension ``B`` of rows right of the draws, for a model
            with ``control_dim`` U.
        static: ``[S]``, or ``[B, S]`` likewise, for a model with ``static_dim`` S.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is not positive, ``seed`` is out of range, or what is known of the steps does not
            fit the model.
    """
    num_steps = check.size("num_steps", num_steps)
    lead = () if num_samples is None else (check.size("num_samples", num_samples),)
    with drawing(dmm, seed, generator):
        given = [(controls, 2), (static, 1)]
        rows = [len(each) for each, dims in given if isinstance(each, Tensor) and each.dim() > dims]
        if not rows:
            controls, static = (
                each[None] if isinstance(each, Tensor) and each.dim() == dims else each
                for each, dims in given
            )
        steps = known_steps(dmm, rows[0] if rows else 1, num_steps, controls, static)
        drawn = roll_out(dmm, Start(dmm.z_0.expand(*lead, len(steps.lengths), -1)), steps)
        return drawn if rows else Trajectory(*(each.squeeze(-3) for each in drawn))


@torch.no_grad()
def forecast(
    dmm: DMM,
    batch: Batch,
    num_steps: int,
    num_samples: int | None = None,
    quantiles: Iterable[float] | None = None,
    *,
    controls: Tensor | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``[B, num_steps, D]``: a draw of the continuation of each sequence from its own end.

    z_{1:T} is drawn from the posterior given the sequence, the transition continues it from its last step,
    and x is drawn from the emission.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``.
        num_steps: number of time steps to draw.
        num_samples: number of draws ``S`` for each sequence, all in one pass, for a result
            ``[S, B, num_steps, D]``; for binary data, its mean over draws estimates probabilities. None: one
            draw, without that dimension.
        quantiles: ``Q`` probabilities between 0 and 1. With them the result is ``[Q, B, num_steps, D]``, the
            quantiles of the ``num_samples`` draws, separately for each value, interpolated linearly.
        controls: ``[B, num_steps, U]``, the controls of the steps to draw, for a model with ``control_dim``
            U; static covariates are part of the batch.
        temperature: below 1, draws stay closer to the most probable values. It multiplies the scale of
            z_t given z_{t-1}, and divides the logits of a Bernoulli or NADE emission; with any other
            emission it must be 1. The latents of the given steps are
            drawn at 1.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count or ``temperature`` is not positive, a number is out of range, ``quantiles`` come
            without ``num_samples``, or the batch, ``controls`` or ``temperature`` does not fit the model.
    """
    temperature = checked_temperature(temperature)
    num_steps = check.size("num_steps", num_steps)
    probabilities = None if quantiles is None else _checked_quantiles(quantiles)
    if probabilities is not None and num_samples is None:
        check.fail("num_samples", "a positive int with quantiles", "None")
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        steps = known_steps(dmm, len(checked.lengths), num_steps, controls, _static(dmm, checked))
        x = roll_out(dmm, _after(dmm, checked, drawn.z, checked.lengths), steps, temperature).x
    if probabilities is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.quantile(wide, wide.new_tensor(probabilities), dim=0).to(x.dtype)


@torch.no_grad()
def counterfactual(
    dmm: DMM,
    batch: Batch,
    controls: Tensor,
    start: int,
    num_samples: int | None = None,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Draws of z and x from step ``start`` on as they would have been under other controls.

    z_{1:start} is drawn from the posterior given the whole factual sequence, and the model continues from
    there under ``controls``, with new noise. Both are zero past the end of a row.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``, with the factual controls.
        controls: ``[B, T - start, U]``, the controls of the steps ``start, .., T - 1``, counted from 0;
            entries past the end of a row are ignored.
        start: the first step with other controls, counted from 0.
        num_samples: number of draws ``S`` for each sequence, all in one pass, for
            ``z [S, B, T - start, Z]`` and ``x [S, B, T - start, D]``; None: one, without that dimension.
        seed: seed of this call's random numbers; None: use torch's global generator.
        generator: used instead of a seed; its next random number becomes the seed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is not positive, a number is out of range, or the batch or ``controls`` do not fit
            the model.

    Source: arXiv 1609.09869, section 6.3.
    """
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        start = check.int_between("start", start, 0, checked.T - 1)
        if dmm.control_dim == 0:
            check.fail("dmm", "a model with controls", "one with control_dim=0")
        later = checked.valid[:, start:]
        if isinstance(controls, Tensor) and controls.shape[:-1] == later.shape:
            controls = torch.where(later.to(controls.device)[..., None], controls, 0.0)
        steps = known_steps(dmm, len(checked.lengths), checked.T - start, controls, _static(dmm, checked))
        steps = steps._replace(lengths=(checked.lengths - start).clamp_min(0))
        before = checked.lengths.clamp_max(start)
        return roll_out(dmm, _after(dmm, checked, drawn.z, before), steps)


def _static(dmm: DMM, checked: MiniBatch) -> Tensor | None:
    """``[B, S]``: the covariates of each row of a batch."""
    if checked.controls is None or dmm.static_dim == 0:
        return None
    return checked.controls[:, 0, dmm.control_dim :]


def _after(dmm: DMM, checked: MiniBatch, z: Tensor, steps: Tensor) -> Start:
    """The state after ``steps [B]`` steps of each row; after 0 steps the model's initial state."""
    lead = z.shape[:-2]

    def last(values: Tensor, first: Tensor) -> Tensor:
        at = (steps - 1).clamp_min(0)[:, None, None].expand(*lead, 1, values.shape[-1])
        found = values.expand(*lead, *values.shape[-2:]).gather(-2, at).squeeze(-2)
        return torch.where(steps[:, None] > 0, found, first)

    past = None
    if dmm.augment is not None and checked.x is not None:
        x = dmm._in_own_units(checked.x, checked)
        past = last(x, x.new_zeros(x.shape[-1]))
    return Start(last(z, dmm.z_0), past)


def _checked_quantiles(quantiles: Any) -> list[float]:
    """The probabilities as Python floats."""
    expected = "a sequence of probabilities between 0 and 1"
    if isinstance(quantiles, Tensor):
        quantiles = check.dense("quantiles", quantiles).tolist()
    given = [check.probability("quantiles", q) for q in check.elements("quantiles", quantiles, expected)]
    if not given:
        check.fail("quantiles", "at least one probability", "none")
    return given
