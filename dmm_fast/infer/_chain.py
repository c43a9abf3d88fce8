"""The model's chain from any step on: latents and data, drawn forward in time."""

from typing import NamedTuple

import torch
from torch import Tensor

from dmm_fast._inputs import beside
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import MarkovPrior
from dmm_fast.model import DMM


class Trajectory(NamedTuple):
    """Latents ``[..., T, Z]`` and data ``[..., T, D]`` drawn together."""

    z: Tensor
    x: Tensor


class Start(NamedTuple):
    """The state before the first step: ``z [..., B, Z]``, and ``x [..., B, D]`` in the units of the networks.

    The latter may be None where no network reads the past data.
    """

    z: Tensor
    x: Tensor | None = None


def known_steps(
    dmm: DMM, B: int, num_steps: int, controls: Tensor | None, static: Tensor | None
) -> MiniBatch:
    """So many rows and steps without data, with their controls checked against the model."""
    lengths = torch.full((B,), num_steps, dtype=torch.int64)
    return dmm.mini_batch(None, None, None, lengths, 1.0, controls, static)


def roll_out(dmm: DMM, start: Start, steps: MiniBatch) -> Trajectory:
    """Z ``[..., B, T, Z]`` and x ``[..., B, T, D]`` drawn over ``steps``; zero past the end of each row."""
    return _at_once(dmm, start, steps) if dmm.augment is None else _step_by_step(dmm, start, steps)


def _at_once(dmm: DMM, start: Start, steps: MiniBatch) -> Trajectory:
    """The whole chain of z, and then all of x."""
    *lead, B, Z = start.z.shape
    inputs = dmm.transition_inputs(steps)
    given = (steps.lengths, steps.T) if inputs is None else (steps.lengths, steps.T, inputs)
    transition = dmm.prior(*given).transition
    # The prior's rows have a start each, so rows of all particles are rows of one.
    lengths = steps.lengths.expand(*lead, B).reshape(-1)
    if inputs is not None:
        inputs = inputs.expand(*lead, *inputs.shape).reshape(len(lengths), *inputs.shape[-2:])
    prior = MarkovPrior(start.z.reshape(-1, Z), transition, lengths, steps.T, inputs)
    z = prior.sample().unflatten(0, (*lead, B))
    return Trajectory(z, dmm.emission(z, steps.lengths).sample())


def _step_by_step(dmm: DMM, start: Start, steps: MiniBatch) -> Trajectory:
    """z_t and x_t in turn, for a model in which x_{t-1} is an input of step t."""
    z_t, units = start.z, dmm._units()
    x_prev = z_t.new_zeros(*z_t.shape[:-1], dmm.input_dim) if start.x is None else start.x
    controls = [None] * steps.T if steps.controls is None else steps.controls.unbind(-2)
    z, x = [], []
    for controls_t, valid in zip(controls, steps.valid.unbind(-1), strict=True):
        more = dmm.inputs.of_transition(x_prev, controls_t)
        loc, scale = dmm.trans(z_t if more is None else beside(z_t, more))
        # A chain that went on past the end of its row could grow without bound.
        z_t = torch.where(valid[:, None], loc + scale * torch.randn_like(loc), 0.0)
        read = dmm.inputs.of_emission(z_t, x_prev).unsqueeze(-2)
        x_t = dmm.emission(read, valid.to(torch.int64)).sample().squeeze(-2)
        x_prev = x_t if units is None else (x_t - units.loc) / units.scale
        z.append(z_t)
        x.append(x_t)
    return Trajectory(torch.stack(z, dim=-2), torch.stack(x, dim=-2))
