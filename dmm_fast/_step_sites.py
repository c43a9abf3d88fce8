"""The model and guide of a DMM with one site per time step, as in Pyro's example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from dmm_fast import _flows, check
from dmm_fast._heads import HEADS
from dmm_fast._inputs import beside
from dmm_fast._minibatch import MiniBatch
from dmm_fast.distributions import FlowedNormal
from dmm_fast.distributions._single_step import SingleStep

if TYPE_CHECKING:
    from dmm_fast.model import DMM


def refuse_overridden(dmm: DMM, original: type[DMM], *names: str) -> None:
    """Refuse a subclass's methods for whole sequences, which a program of single steps would not call.

    Raises:
        ValueError: ``dmm`` overrides one of the methods ``names`` of ``original``.
    """
    for name in names:
        if getattr(getattr(dmm, name), "__func__", None) is not getattr(original, name):
            got = f"{type(dmm).__name__}.{name}(), which is for whole sequences"
            check.fail("per_step_sites", f"False where {name}() is overridden", got)


def model_steps(dmm: DMM, batch: MiniBatch, annealing_factor: float | Tensor) -> Iterator[Tensor]:
    """Sites ``z_t`` and ``obs_x_t`` for t = 1 .. T; yields each x_t."""
    B, inputs = batch.lengths.shape[0], dmm.inputs
    z_prev = dmm.z_0.expand(B, -1)
    x_prev = z_prev.new_zeros(B, dmm.input_dim)
    valid = batch.valid.unsqueeze(-1).unbind(1)
    observed = batch.observed.unbind(1)
    controls = [None] * batch.T if batch.controls is None else batch.controls.unbind(1)
    x = [None] * batch.T if batch.x is None else batch.x.unbind(1)
    past = None if batch.past is None else batch.past.unbind(1)
    for t in pyro.markov(range(1, batch.T + 1)):
        x_prev = x_prev if past is None else past[t - 1]
        more = inputs.of_transition(x_prev, controls[t - 1])
        given = z_prev if more is None else beside(z_prev, more)
        prior = dist.Normal(*dmm.trans(given)).mask(valid[t - 1]).to_event(1)
        with poutine.scale(scale=annealing_factor):
            z_prev = pyro.sample(f"z_{t}", prior)
        emission = _emission(dmm, inputs.of_emission(z_prev, x_prev), observed[t - 1])
        x_t = pyro.sample(f"obs_x_{t}", emission, obs=x[t - 1])
        if dmm.augment is not None and past is None:
            units = dmm._units()
            own = x_t if units is None else (x_t - units.loc) / units.scale
            x_prev = torch.where(observed[t - 1], own, 0.0)
        yield x_t


def _emission(dmm: DMM, z_t: Tensor, observed: Tensor) -> Any:
    """p(x_t | z_t) for ``z_t [..., B, Z]``: batch shape ``[..., B]``, event shape ``[D]``."""
    head = dmm._head
    if head is HEADS["bernoulli"]:
        return dist.Bernoulli(dmm.emitter(z_t)).mask(observed).to_event(1)
    if head is HEADS["gaussian"]:
        loc, scale = dmm.emitter(z_t)
        scale = scale + dmm.min_scale
        if (units := dmm._units()) is not None:
            loc, scale = units.loc + units.scale * loc, units.scale * scale
        return dist.Normal(loc, scale).mask(observed).to_event(1)
    lengths = torch.ones(observed.shape[:1], dtype=torch.int64, device=z_t.device)
    mask = observed if observed.shape[-1] == 1 else observed.unsqueeze(1)
    return SingleStep(dmm.emission(z_t.unsqueeze(-2), lengths, mask))


def guide_steps(dmm: DMM, batch: MiniBatch, h: Tensor, annealing_factor: float | Tensor) -> Iterator[Tensor]:
    """Sites ``z_t`` for t = 1 .. T; yields each z_t.

    Raises:
        ValueError: ``dmm.path_gradient`` is set, which is for one site per sequence.
    """
    if dmm.path_gradient:
        check.fail("path_gradient", "False with one site per time step", "True")
    z_prev = None if dmm.z_q_0 is None else dmm.z_q_0.expand(batch.lengths.shape[0], -1)
    valid = batch.valid.unbind(1)
    h_steps = h.unbind(1)
    weights = _flows.weights_if_any(dmm.iafs)  # gathered once for all steps
    for t in pyro.markov(range(1, batch.T + 1)):
        given: tuple[Any, ...] = (h_steps[t - 1],) if z_prev is None else (z_prev, h_steps[t - 1])
        loc, scale = dmm.combiner(*given)
        scale = scale + dmm.min_scale
        if dmm.iafs:
            site = FlowedNormal(loc, scale, dmm.iafs, weights).mask(valid[t - 1])
        else:
            site = dist.Normal(loc, scale).mask(valid[t - 1].unsqueeze(-1)).to_event(1)
        with poutine.scale(scale=annealing_factor):
            z_t = pyro.sample(f"z_{t}", site)
        z_prev = None if z_prev is None else z_t
        yield z_t
