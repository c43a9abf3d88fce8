"""Traces of guide and model: for several draws of all latents at once, and the sites of a trace."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.trace_struct import Trace


def traces_of_particles(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    num_particles: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Trace, Trace]:
    """The traces of the guide and of the model run on its draws, without log-densities.

    The rows of the mini-batch are the rightmost dimension of a site, and the particles the one before it.
    """
    particles = pyro.plate("particles", num_particles, dim=-2)
    guide_trace = poutine.trace(particles(guide)).get_trace(*args, **kwargs)
    replayed = poutine.replay(particles(model), trace=guide_trace)
    return guide_trace, poutine.trace(replayed).get_trace(*args, **kwargs)


def sample_sites(trace: Trace) -> Iterator[Any]:
    """The sites of a trace that have a distribution."""
    return (site for site in trace.nodes.values() if site["type"] == "sample")
