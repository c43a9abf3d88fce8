"""Forward simulation of the model from any state: latents and data."""

from typing import NamedTuple

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast._inputs import beside
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import BernoulliEmission, MarkovPrior, NadeEmission
from dmm_fast.model import DMM


class Trajectory(NamedTuple):
    """A joint draw of latents ``[..., T, Z]`` and data ``[..., T, D]``."""

    z: Tensor
    x: Tensor


class Start(NamedTuple):
    """The state before the first step: ``z [..., B, Z]``, and ``x [..., B, D]`` in the units of the networks.

    ``x`` may be None if no network reads past data.
    """

    z: Tensor
    x: Tensor | None = None


def known_steps(
    dmm: DMM, B: int, num_steps: int, controls: Tensor | None, static: Tensor | None
) -> MiniBatch:
    """A batch without data, of given numbers of rows and steps, with controls checked against the model."""
    lengths = torch.full((B,), num_steps, dtype=torch.int64)
    return dmm.mini_batch(None, None, None, lengths, 1.0, controls, static)


def roll_out(dmm: DMM, start: Start, steps: MiniBatch, temperature: float = 1.0) -> Trajectory:
    """Draws z ``[..., B, T, Z]`` and x ``[..., B, T, D]`` over ``steps``; zero past the end of each row.

    Raises:
        ValueError: ``temperature`` is not 1, and the emission is neither Bernoulli nor NADE.
    """
    if dmm.augment is None and temperature == 1:
        return _at_once(dmm, start, steps)
    return _step_by_step(dmm, start, steps, temperature)


def checked_temperature(temperature: object) -> float:
    """The temperature as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not positive.
    """
    checked = check.number("temperature", temperature, "a positive number")
    if checked <= 0:
        check.fail("temperature", "a positive number", str(checked))
    return checked


def _at_once(dmm: DMM, start: Start, steps: MiniBatch) -> Trajectory:
    """Draw the whole chain of z, then all of x."""
    *lead, B, Z = start.z.shape
    inputs = dmm.transition_inputs(steps)
    given = (steps.lengths, steps.T) if inputs is None else (steps.lengths, steps.T, inputs)
    transition = dmm.prior(*given).transition
    # Each row of the prior has its own initial state, so the rows of all particles form one batch.
    lengths = steps.lengths.expand(*lead, B).reshape(-1)
    if inputs is not None:
        inputs = inputs.expand(*lead, *inputs.shape).reshape(len(lengths), *inputs.shape[-2:])
    prior = MarkovPrior(start.z.reshape(-1, Z), transition, lengths, steps.T, inputs)
    z = prior.sample().unflatten(0, (*lead, B))
    return Trajectory(z, dmm.emission(z, steps.lengths).sample())


def _step_by_step(dmm: DMM, start: Start, steps: MiniBatch, temperature: float) -> Trajectory:
    """Draw z_t and x_t alternately, for a temperature or a model in which x_{t-1} is an input of step t."""
    z_t, units = start.z, dmm._units()
    x_prev = z_t.new_zeros(*z_t.shape[:-1], dmm.input_dim) if start.x is None else start.x
    controls = [None] * steps.T if steps.controls is None else steps.controls.unbind(-2)
    z, x = [], []
    for controls_t, valid in zip(controls, steps.valid.unbind(-1), strict=True):
        more = dmm.inputs.of_transition(x_prev, controls_t)
        loc, scale = dmm.trans(z_t if more is None else beside(z_t, more))
        # A chain that continued past the end of its row could grow without bound.
        z_t = torch.where(valid[:, None], loc + temperature * scale * torch.randn_like(loc), 0.0)
        read = dmm.inputs.of_emission(z_t, x_prev).unsqueeze(-2)
        emission = dmm.emission(read, valid.to(torch.int64))
        if temperature != 1:
            if not isinstance(emission, BernoulliEmission | NadeEmission):
                expected = "1 where the emission is neither Bernoulli nor NADE"
                check.fail("temperature", expected, f"{temperature:g} with {type(emission).__name__}")
            emission.temperature = temperature
        x_t = emission.sample().squeeze(-2)
        x_prev = x_t if units is None else (x_t - units.loc) / units.scale
        z.append(z_t)
        x.append(x_t)
    return Trajectory(torch.stack(z, dim=-2), torch.stack(x, dim=-2))
