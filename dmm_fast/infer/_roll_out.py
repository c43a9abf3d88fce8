"""Draws from the model itself and of what follows data, public as :mod:`dmm_fast.infer`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast._minibatch import MiniBatch
from dmm_fast.infer._chain import Start, Trajectory, known_steps, roll_out
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
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``[N, num_steps, D]``: ``num_sequences`` N independent draws from the model itself.

    Args:
        dmm: the model.
        num_sequences: sequences to draw.
        num_steps: time steps of each.
        controls: ``[N, num_steps, U]``, of a model with ``control_dim`` U.
        static: ``[N, S]``, of a model with ``static_dim`` S.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count is not positive, ``seed`` is out of range, or what is known of the steps does not
            fit the model.
    """
    num_sequences = check.size("num_sequences", num_sequences)
    num_steps = check.size("num_steps", num_steps)
    with drawing(dmm, seed, generator):
        steps = known_steps(dmm, num_sequences, num_steps, controls, static)
        return roll_out(dmm, Start(dmm.z_0.expand(num_sequences, -1)), steps).x


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
    """Draws of latents and data together from the model itself: ``z [..., T, Z]`` and ``x [..., T, D]``.

    Their means over draws estimate those of the model, which has none in closed form.

    Args:
        dmm: the model.
        num_steps: time steps ``T``.
        num_samples: draws ``S``, a dimension on the left; None: one, without a dimension for it.
        controls: ``[T, U]``, or ``[B, T, U]`` for rows of a dimension ``B`` right of the draws; of a model
            with ``control_dim`` U.
        static: ``[S]``, or ``[B, S]`` likewise; of a model with ``static_dim`` S.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
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
    seed: int | None = None,
    generator: torch.Generator | None = None,
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
        controls: ``[B, num_steps, U]``, those of the steps to draw, of a model with ``control_dim`` U; what
            is static comes with the batch.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count is not positive, a number is out of range, ``quantiles`` come without
            ``num_samples``, or the batch or ``controls`` do not fit the model.
    """
    num_steps = check.size("num_steps", num_steps)
    probabilities = None if quantiles is None else _checked_quantiles(quantiles)
    if probabilities is not None and num_samples is None:
        check.fail("num_samples", "a positive int with quantiles", "None")
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        steps = known_steps(dmm, len(checked.lengths), num_steps, controls, _static(dmm, checked))
        x = roll_out(dmm, _after(dmm, checked, drawn.z, checked.lengths), steps).x
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
    """Draws of what would have been from step ``start`` on under other controls: z and x.

    z_{1:start} is drawn from the posterior given the whole factual sequence, and the model goes on from there
    under ``controls``, with noise of its own. Both are zero past the end of a row.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it, with the factual controls.
        controls: ``[B, T - start, U]``, those of the steps ``start, .., T - 1``, counted from 0; what stands
            past the end of a row is not read.
        start: the first step with other controls, from 0.
        num_samples: draws ``S`` for each sequence, all in one pass, for ``z [S, B, T - start, Z]`` and
            ``x [S, B, T - start, D]``; None: one, without a dimension for it.
        seed: of this call's random numbers; None: they are those of torch's global generator.
        generator: in place of a seed, a generator whose next number is the seed.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count is not positive, a number is out of range, or the batch or ``controls`` do not fit
            the model.

    Source: arXiv 1609.09869, section 6.3.
    """
    with drawing(dmm, seed, generator):
        drawn, checked = posterior_draw(dmm, batch, num_samples)
        start = check.int_between("start", start, 0, checked.T - 1)
        if dmm.control_dim == 0:
            check.fail("dmm", "a model with controls", "one of control_dim=0")
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
    """The state after so many ``steps [B]`` of each row; before the first, what the model starts from."""
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
    """The probabilities as Python's numbers."""
    expected = "a sequence of probabilities between 0 and 1"
    if isinstance(quantiles, Tensor):
        quantiles = check.dense("quantiles", quantiles).tolist()
    given = [check.probability("quantiles", q) for q in check.elements("quantiles", quantiles, expected)]
    if not given:
        check.fail("quantiles", "at least one probability", "none")
    return given
