"""Importance-sampled likelihoods and ELBOs of data, public as :mod:`dmm_fast.infer`."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from dmm_fast import check
from dmm_fast._share import rows_of, sharing, spread_rows
from dmm_fast.data import SequenceSet
from dmm_fast.infer._data_parallel import DataParallel
from dmm_fast.infer._particles import traces_of_particles
from dmm_fast.model import DMM

Batch = tuple[Any, ...]
"""A mini-batch, one to seven arguments of ``DMM.model``: a :class:`dmm_fast.data.Batch` or
:class:`~dmm_fast.data.ControlledBatch`."""


class ElboEvaluation(NamedTuple):
    """A negative ELBO or a negative log-likelihood in nats per time step, averaged in both usual ways.

    Lower is better. ``total_over_total`` is the sum over all sequences divided by the total number of their
    time steps (the tutorial's figure); ``mean_of_averages`` is the mean over sequences of each sequence's
    average. A time step with missing values, even if all are missing, counts as a time step.
    """

    total_over_total: float
    mean_of_averages: float


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put ``module`` and its submodules into evaluation mode, and restore the mode of each on exit."""
    training = module.training
    modes = [(each, each.training) for each in module.modules()]
    try:
        module.eval()
        yield
    finally:
        # A user's train() may do more than set the mode, so it is called before the modes are restored.
        module.train(training)
        for each, mode in modes:
            each.training = mode


def check_batch(dmm: DMM, batch: object) -> None:
    """Check the types of a model and of a mini-batch; the model itself checks the batch's elements.

    Raises:
        TypeError: ``dmm`` is not a DMM, or ``batch`` is not a tuple of one to seven arguments.
    """
    check.kind("dmm", dmm, DMM)
    if not isinstance(batch, tuple | list) or not 1 <= len(batch) <= 7:
        got = f"{len(batch)} of them" if isinstance(batch, tuple | list) else check.describe(batch)
        check.fail("batch", "a tuple of 1 to 7 arguments of DMM.model", got, TypeError)


def log_weights(dmm: DMM, batch: Batch, num_particles: int) -> Tensor:
    """``[P, B]``: log p(x_b, z) - log q(z | x_b) for ``P`` draws of z, in nats, all in one pass.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``num_particles`` is not positive, or the batch does not fit the model.
    """
    check_batch(dmm, batch)
    num_particles = check.size("num_particles", num_particles)
    total = torch.zeros((), device=dmm.z_0.device, dtype=dmm.z_0.dtype)
    # In a separate parameter store, so that these parameters do not enter that of a model in training.
    with pyro.get_param_store().scope(), evaluating(dmm):
        guide, model = traces_of_particles(dmm.model, dmm.guide, num_particles, tuple(batch), {})
        for trace, sign in ((model, 1.0), (guide, -1.0)):
            # Computed within the scope, since a user's own network may run here.
            trace.compute_log_prob()
            for site in trace.nodes.values():
                if site["type"] == "sample" and "log_prob" in site:
                    total = total + sign * site["log_prob"]
    return total


@torch.no_grad()
def importance_nll(dmm: DMM, batch: Batch, num_particles: int = 100, chunk_size: int = 100) -> Tensor:
    r"""``[B]``: the importance-sampled ``-log p(x_b)`` of each sequence, in nats.

    ``-log (1/P) sum_i p(x_b, z_i) / q(z_i | x_b)``, with the mean taken separately for each sequence,
    never over the batch. Its expectation is an upper bound on ``-log p(x_b)``, tighter with more
    particles.

    Args:
        dmm: the model and its guide.
        batch: the arguments of ``DMM.model``.
        num_particles: number ``P`` of draws of z for each sequence.
        chunk_size: number of draws evaluated at a time, which bounds the memory.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is not positive, or the batch does not fit the model.

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
    dmm: DMM,
    data: SequenceSet,
    num_particles: int = 1,
    mini_batch_size: int = 64,
    *,
    ranks: DataParallel | None = None,
) -> ElboEvaluation:
    """The negative ELBO of a data set in nats per time step, averaged both ways.

    Args:
        dmm: the model and its guide.
        data: the sequences.
        num_particles: draws of z for each sequence.
        mini_batch_size: sequences evaluated at a time, which bounds the memory.
        ranks: processes that share the work; each of them calls this, and has the whole result.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is not positive, or the data do not fit the model.
    """

    def nats(batch: Batch) -> Tensor:
        return -log_weights(dmm, batch, num_particles).mean(0)

    return _evaluate(dmm, data, mini_batch_size, ranks, nats)


@torch.no_grad()
def evaluate_importance_nll(
    dmm: DMM,
    data: SequenceSet,
    num_particles: int = 100,
    chunk_size: int = 100,
    mini_batch_size: int = 16,
    *,
    ranks: DataParallel | None = None,
) -> ElboEvaluation:
    """:func:`importance_nll` of a data set in nats per time step, averaged both ways.

    Args:
        dmm: the model and its guide.
        data: the sequences.
        num_particles: draws of z for each sequence.
        chunk_size: draws evaluated at a time, which bounds the memory, as ``mini_batch_size`` does.
        mini_batch_size: sequences evaluated at a time.
        ranks: processes that share the work; each of them calls this, and has the whole result.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a count is not positive, or the data do not fit the model.
    """

    def nats(batch: Batch) -> Tensor:
        return importance_nll(dmm, batch, num_particles, chunk_size)

    return _evaluate(dmm, data, mini_batch_size, ranks, nats)


def _evaluate(
    dmm: DMM,
    data: SequenceSet,
    mini_batch_size: int,
    ranks: DataParallel | None,
    nats_of: Callable[[Batch], Tensor],
) -> ElboEvaluation:
    """Averages of ``nats_of``, ``[B]`` for a mini-batch, each rank computing its rows."""
    check.kind("dmm", dmm, DMM)
    check.kind("data", data, SequenceSet)
    size = check.size("mini_batch_size", mini_batch_size)
    check.kind("ranks", ranks, DataParallel, type(None))
    batches = map(data.batch, torch.arange(len(data), device=data.lengths.device).split(size))
    if ranks is None or ranks.size == 1:
        nats = torch.cat([nats_of(batch) for batch in batches])
    else:
        # Sums with zeros are exact: the numbers are those of one process.
        nats = ranks.sum(torch.cat([_own_rows(batch, ranks, nats_of) for batch in batches]))
    nats, lengths = nats.double(), data.lengths.to(nats.device)
    return ElboEvaluation(
        total_over_total=(nats.sum() / lengths.sum()).item(),
        mean_of_averages=(nats / lengths).mean().item(),
    )


def _own_rows(batch: Batch, ranks: DataParallel, nats_of: Callable[[Batch], Tensor]) -> Tensor:
    """``[B]``: ``nats_of`` the rows of this rank, zero at those of others."""
    share = ranks.share(len(batch[0]))
    with sharing(share):
        return spread_rows(nats_of(tuple(rows_of(value, share) for value in batch)), share)
