"""Evaluation and sampling with a trained model: importance-sampled likelihood, ELBO, forecasts.

:class:`GraphedSVI` trains one; what is said here is about the functions.

Every log-likelihood is in nats. Randomness is torch's global generator. Dropout is off in here,
whatever mode the model is in.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dmm_fast import check
from dmm_fast.data import SequenceSet
from dmm_fast.graphed import GraphedSVI as GraphedSVI
from dmm_fast.model import DMM
from dmm_fast.observations import Observations

Batch = tuple[Tensor, Tensor | PackedSequence | None, Tensor | None, Tensor | None]
"""A mini-batch as ``DMM.model`` takes it; :class:`dmm_fast.data.Batch` is one."""


class ElboEvaluation(NamedTuple):
    """The negative ELBO in nats per time step, averaged both ways in use; lower is better.

    ``total_over_total`` is the sum over all sequences divided by all their time steps (the
    tutorial's figure); ``mean_of_averages`` gives each sequence's own average the same weight.
    """

    total_over_total: float
    mean_of_averages: float


@contextmanager
def _without_dropout(dmm: DMM) -> Iterator[None]:
    training = dmm.training
    dmm.eval()
    try:
        yield
    finally:
        dmm.train(training)


def log_weights(dmm: DMM, batch: Batch, num_particles: int) -> Tensor:
    """``[P, B]``: log p(x_b, z) - log q(z | x_b) for ``P`` draws of z, in nats, all in one pass.

    Raises:
        ValueError: ``num_particles`` is not positive, or the batch does not fit the model.
    """
    if num_particles < 1:
        check.fail("num_particles", "a positive int", str(num_particles))
    # The model's plate is the rightmost, so particles go to the dimension before it.
    particles = pyro.plate("particles", num_particles, dim=-2)
    # In a parameter store of its own, or another model's training would find this one's parameters.
    with pyro.get_param_store().scope(), _without_dropout(dmm):
        guide = poutine.trace(particles(dmm.guide)).get_trace(*batch)
        model = poutine.trace(poutine.replay(particles(dmm.model), trace=guide)).get_trace(*batch)
    total = torch.zeros((), device=dmm.z_0.device, dtype=dmm.z_0.dtype)
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and "log_prob" in site:
                total = total + sign * site["log_prob"]
    return total


@torch.no_grad()
def importance_nll(dmm: DMM, batch: Batch, num_particles: int = 100, chunk_size: int = 100) -> Tensor:
    r"""``[B]``: the importance-sampled ``-log p(x_b)`` of each sequence, in nats.

    ``-log (1/P) sum_i p(x_b, z_i) / q(z_i | x_b)`` with the mean taken for each sequence by itself,
    never over the batch. Its expectation bounds ``-log p(x_b)`` from above, tighter with more
    particles.

    Args:
        dmm: the model and its guide.
        batch: as ``DMM.model`` takes it.
        num_particles: draws ``P`` of z for each sequence.
        chunk_size: draws evaluated at a time, which bounds the memory.

    Raises:
        ValueError: a count that is not positive, or a batch that does not fit the model.

    Source: arXiv 1609.09869, appendix; Burda et al., arXiv 1509.00519.
    """
    if chunk_size < 1:
        check.fail("chunk_size", "a positive int", str(chunk_size))
    sizes = [chunk_size] * (num_particles // chunk_size)
    rest = num_particles - sum(sizes)
    chunks = [log_weights(dmm, batch, size).logsumexp(0) for size in sizes + [rest] * (rest != 0)]
    if not chunks:
        check.fail("num_particles", "a positive int", str(num_particles))
    return math.log(num_particles) - torch.stack(chunks).logsumexp(0)


@torch.no_grad()
def evaluate_elbo(
    dmm: DMM, data: SequenceSet, num_particles: int = 1, mini_batch_size: int = 64
) -> ElboEvaluation:
    """The negative ELBO of a data set in nats per time step, averaged both ways.

    Raises:
        ValueError: a count that is not positive, or data that do not fit the model.
    """
    negative = [-log_weights(dmm, b, num_particles).mean(0) for b in _batches(data, mini_batch_size)]
    return _per_time_step(torch.cat(negative), data.lengths)


@torch.no_grad()
def evaluate_importance_nll(
    dmm: DMM,
    data: SequenceSet,
    num_particles: int = 100,
    chunk_size: int = 100,
    mini_batch_size: int = 16,
) -> ElboEvaluation:
    """:func:`importance_nll` of a data set in nats per time step, averaged both ways.

    Raises:
        ValueError: a count that is not positive, or data that do not fit the model.
    """
    nll = [importance_nll(dmm, b, num_particles, chunk_size) for b in _batches(data, mini_batch_size)]
    return _per_time_step(torch.cat(nll), data.lengths)


def _batches(data: SequenceSet, mini_batch_size: int) -> Iterator[Batch]:
    if mini_batch_size < 1:
        check.fail("mini_batch_size", "a positive int", str(mini_batch_size))
    indices = torch.arange(data.lengths.shape[0], device=data.lengths.device)
    return (data.batch(chunk) for chunk in indices.split(mini_batch_size))


def _per_time_step(nats: Tensor, lengths: Tensor) -> ElboEvaluation:
    nats, lengths = nats.double(), lengths.to(nats.device)
    return ElboEvaluation(
        total_over_total=(nats.sum() / lengths.sum()).item(),
        mean_of_averages=(nats / lengths).mean().item(),
    )


@torch.no_grad()
def reconstruct(dmm: DMM, batch: Batch) -> Tensor:
    """``[B, T, D]``: the emission's mean (probabilities, for a Bernoulli) at one posterior draw.

    Raises:
        ValueError: the batch does not fit the model.
    """
    z, given = _posterior_draw(dmm, batch)
    return dmm.emission(z, given.lengths).mean


@torch.no_grad()
def forecast(dmm: DMM, batch: Batch, num_steps: int) -> Tensor:
    """``[B, num_steps, D]``: a draw of what follows each sequence, from its own end on.

    z_{1:T} is drawn from the posterior given the prefix, the transition carries its last step
    forward, and x is drawn from the emission.

    Raises:
        ValueError: ``num_steps`` is not positive, or the batch does not fit the model.
    """
    _positive_steps(num_steps)
    z, given = _posterior_draw(dmm, batch)
    last = (given.lengths - 1)[:, None, None].expand(-1, 1, z.shape[-1])
    return _roll_out(dmm, z.gather(1, last).squeeze(1), num_steps)


@torch.no_grad()
def generate(dmm: DMM, num_sequences: int, num_steps: int) -> Tensor:
    """``[num_sequences, num_steps, D]``: draws from the model itself.

    Raises:
        ValueError: a count that is not positive.
    """
    if num_sequences < 1:
        check.fail("num_sequences", "a positive int", str(num_sequences))
    _positive_steps(num_steps)
    return _roll_out(dmm, dmm.z_0.expand(num_sequences, -1), num_steps)


def _positive_steps(num_steps: int) -> None:
    if num_steps < 1:
        check.fail("num_steps", "a positive int", str(num_steps))


def _posterior_draw(dmm: DMM, batch: Batch) -> tuple[Tensor, Observations]:
    given = dmm.observe(*batch)
    if given.x is None:
        check.fail("batch", "data to condition on", "None")
    with _without_dropout(dmm):
        h = dmm.encode(given)
    return dmm.posterior(h, given.lengths).rsample(), given


def _roll_out(dmm: DMM, z_prev: Tensor, num_steps: int) -> Tensor:
    """X drawn over ``num_steps`` steps of the prior chain that leaves from ``z_prev [B, Z]``."""
    steps = []
    for _ in range(num_steps):
        loc, scale = dmm.trans(z_prev)
        z_prev = loc + scale * torch.randn_like(loc)
        steps.append(z_prev)
    lengths = torch.full_like(z_prev[:, 0], num_steps, dtype=torch.int64)
    return dmm.emission(torch.stack(steps, dim=1), lengths).sample()
