"""Importance-sampled likelihoods and ELBOs of data, public as :mod:`dmm_fast.infer`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast.data import SequenceSet
from dmm_fast.model import DMM

Batch = tuple[Any, ...]
"""A mini-batch, one to seven arguments of ``DMM.model``: a :class:`dmm_fast.data.Batch` or
:class:`~dmm_fast.data.ControlledBatch`."""


class ElboEvaluation(NamedTuple):
    """The negative ELBO in nats per time step, averaged both ways in use; lower is better.

    ``total_over_total`` is the sum over all sequences divided by all their time steps (the
    tutorial's figure); ``mean_of_averages`` gives each sequence's own average the same weight.
    A time step in which values are missing, or all of them, counts as one.
    """

    total_over_total: float
    mean_of_averages: float


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode of ``module`` and all within it; then each has its own mode back."""
    training = module.training
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval()
        yield
    finally:
        # A train() of a user's own may do more than set the mode, so it is called before that is.
        module.train(training)
        for each, mode in modes:
            each.training = mode


def check_batch(dmm: DMM, batch: object) -> None:
    """Check the kinds of a model and of a mini-batch; what is in the latter the model checks.

    Raises:
        TypeError: ``dmm`` is no DMM, or ``batch`` not a tuple of one to seven arguments.
    """
    check.kind("dmm", dmm, DMM)
    if not isinstance(batch, tuple | list) or not 1 <= len(batch) <= 7:
        got = f"{len(batch)} of them" if isinstance(batch, tuple | list) else check.describe(batch)
        check.fail("batch", "a tuple of 1 to 7 arguments of DMM.model", got, TypeError)


def log_weights(dmm: DMM, batch: Batch, num_particles: int) -> Tensor:
    """``[P, B]``: log p(x_b, z) - log q(z | x_b) for ``P`` draws of z, in nats, all in one pass.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``num_particles`` is not positive, or the batch does not fit the model.
    """
    check_batch(dmm, batch)
    num_particles = check.size("num_particles", num_particles)
    # The model's plate is the rightmost, so particles go to the dimension before it.
    particles = pyro.plate("particles", num_particles, dim=-2)
    total = torch.zeros((), device=dmm.z_0.device, dtype=dmm.z_0.dtype)
    # In a parameter store of its own, or another model's training would find this one's parameters.
    with pyro.get_param_store().scope(), evaluating(dmm):
        guide = poutine.trace(particles(dmm.guide)).get_trace(*batch)
        model = poutine.trace(poutine.replay(particles(dmm.model), trace=guide)).get_trace(*batch)
        for trace, sign in ((model, 1.0), (guide, -1.0)):
            # Where a network of the user's own may run.
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
        TypeError: an argument is of another kind.
        ValueError: a count that is not positive, or a batch that does not fit the model.

    Source: arXiv 1609.09869, appendix; Burda et al., arXiv 1509.00519.
    """
    check_batch(dmm, batch)
    num_particles = check.size("num_particles", num_particles)
    chunk_size = check.size("chunk_size", chunk_size)
    sizes = [chunk_size] * (num_particles // chunk_size)
    rest = num_particles - sum(sizes)
    chunks = [log_weights(dmm, batch, size).logsumexp(0) for size in sizes + [rest] * (rest != 0)]
    return math.log(num_particles) - torch.stack(chunks).logsumexp(0)


@torch.no_grad()
def evaluate_elbo(
    dmm: DMM, data: SequenceSet, num_particles: int = 1, mini_batch_size: int = 64
) -> ElboEvaluation:
    """The negative ELBO of a data set in nats per time step, averaged both ways.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count that is not positive, or data that do not fit the model.
    """
    batches = _batches(dmm, data, mini_batch_size)
    return _per_time_step([-log_weights(dmm, b, num_particles).mean(0) for b in batches], data.lengths)


@torch.no_grad()
def evaluate_importance_nll(
    dmm: DMM, data: SequenceSet, num_particles: int = 100, chunk_size: int = 100, mini_batch_size: int = 16
) -> ElboEvaluation:
    """:func:`importance_nll` of a data set in nats per time step, averaged both ways.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a count that is not positive, or data that do not fit the model.
    """
    batches = _batches(dmm, data, mini_batch_size)
    return _per_time_step([importance_nll(dmm, b, num_particles, chunk_size) for b in batches], data.lengths)


def _batches(dmm: DMM, data: SequenceSet, mini_batch_size: int) -> Iterator[Batch]:
    check.kind("dmm", dmm, DMM)
    check.kind("data", data, SequenceSet)
    size = check.size("mini_batch_size", mini_batch_size)
    indices = torch.arange(len(data), device=data.lengths.device)
    return (data.batch(chunk) for chunk in indices.split(size))


def _per_time_step(nats_of_batches: list[Tensor], lengths: Tensor) -> ElboEvaluation:
    nats = torch.cat(nats_of_batches).double()
    lengths = lengths.to(nats.device)
    return ElboEvaluation(
        total_over_total=(nats.sum() / lengths.sum()).item(),
        mean_of_averages=(nats / lengths).mean().item(),
    )
