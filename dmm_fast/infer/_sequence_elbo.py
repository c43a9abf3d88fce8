"""``Trace_ELBO`` in few operations, where all sites are whole sequences.

Pyro adds up the sites number by number, once for the loss and once for its gradient: on a GPU each of some
forty products and sums of single numbers is a launch.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from dmm_fast import check, triton
from dmm_fast.distributions import SequenceDistribution
from dmm_fast.ops._backends import may_use

# A single program does all of it.
MOST_NUMBERS = 1 << 14


class Term(NamedTuple):
    """A site's log-density as it stands in the ELBO: times its scale, added (1) or taken away (-1)."""

    log_prob: Tensor
    scale: float | Tensor
    sign: int


class SequenceELBO(Trace_ELBO):
    """The estimator and the attributes of ``elbo``, in other operations.

    The ELBO's terms are summed, and its gradients by them made, at once. Where a site is not one of
    :mod:`dmm_fast.distributions`, is masked, or has a scale of several numbers, and under validation, it is
    Pyro's own.

    Args:
        elbo: Pyro's estimator; its attributes are shared.

    Raises:
        TypeError: ``elbo`` is no ``Trace_ELBO``.
    """

    def __init__(self, elbo: Trace_ELBO) -> None:
        check.kind("elbo", elbo, Trace_ELBO)
        self.__dict__ = elbo.__dict__

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        """As Pyro's, but without log-densities where it makes them: which operations they are is open."""
        if is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            traces: tuple[Trace, Trace] = super()._get_trace(model, guide, args, kwargs)
            return traces
        guide_trace = poutine.trace(guide, graph_type="flat").get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed, graph_type="flat").get_trace(*args, **kwargs)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any]:
        sites = [(site, 1) for site in _sample_sites(model_trace)]
        sites += [(site, -1) for site in _sample_sites(guide_trace)]
        if not all(_is_plain(site, sign) for site, sign in sites):
            model_trace.compute_log_prob()
            guide_trace.compute_score_parts()
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        terms = [Term(_log_prob(site), site["scale"], sign) for site, sign in sites]
        loss, gradients = loss_and_gradients(terms, self.num_particles)
        return torch_item(loss), _Surrogate([term.log_prob for term in terms], gradients)


class _Surrogate:
    """The loss that ``Trace_ELBO`` differentiates, divided by the number of particles already."""

    def __init__(self, roots: list[Tensor], gradients: list[Tensor]) -> None:
        pairs = zip(roots, gradients, strict=True)
        self._pairs = [(root, gradient) for root, gradient in pairs if root.requires_grad]
        self.requires_grad = bool(self._pairs)

    def __truediv__(self, num_particles: int) -> "_Surrogate":
        return self

    def backward(self, retain_graph: bool | None = None) -> None:
        """Accumulate the gradients of the parameters."""
        roots, gradients = zip(*self._pairs, strict=True)
        torch.autograd.backward(roots, gradients, retain_graph=retain_graph)


def loss_and_gradients(terms: list[Term], num_particles: int) -> tuple[Tensor, list[Tensor]]:
    """The negative sum of the terms, and its gradients by their log-densities over ``num_particles``."""
    if _by_triton(terms):
        from dmm_fast.triton.elbo import loss_and_gradients as by_triton

        return by_triton([(t.log_prob.detach(), t.scale, t.sign) for t in terms], num_particles)
    with torch.no_grad():
        elbo = sum(term.sign * (term.log_prob * term.scale).sum().double() for term in terms)
        weights = [torch.full_like(term.log_prob, -term.sign / num_particles) for term in terms]
        gradients = [weight * term.scale for weight, term in zip(weights, terms, strict=True)]
    return torch.as_tensor(-elbo), gradients


def _by_triton(terms: list[Term]) -> bool:
    return (
        triton.missing is None
        and may_use("triton")
        and all(
            term.log_prob.is_cuda
            and term.log_prob.dtype in triton.DTYPES
            and term.log_prob.numel() <= MOST_NUMBERS
            and (not isinstance(term.scale, Tensor) or term.scale.device == term.log_prob.device)
            for term in terms
        )
    )


def _sample_sites(trace: Trace) -> Iterator[dict[str, Any]]:
    return (site for site in trace.nodes.values() if site["type"] == "sample")  # type: ignore[misc]


def _is_plain(site: dict[str, Any], sign: int) -> bool:
    """Whether a site's term is its log-density times a number, and so is its gradient."""
    scale = site["scale"]
    return (
        "log_prob" not in site
        and isinstance(site["fn"], SequenceDistribution)
        and site["mask"] is None
        and (scale.dim() == 0 if isinstance(scale, Tensor) else isinstance(scale, int | float))
        and (sign > 0 or (site["fn"].has_rsample and not site["is_observed"]))
    )


def _log_prob(site: dict[str, Any]) -> Tensor:
    log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_prob
