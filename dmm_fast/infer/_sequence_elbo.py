"""``Trace_ELBO`` and ``TraceMeanField_ELBO`` in few operations, for sites that are whole sequences.

Pyro adds the terms of the sites as scalars, once for the loss and once for its gradient: on a GPU each of
some forty scalar products and sums is a kernel launch. Here the weight of each term is known before the term
is computed, so that its value and its gradients come from one pass over the networks.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor

from dmm_fast import check, triton
from dmm_fast._one_step import one_step
from dmm_fast.distributions import (
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    MarkovPosterior,
    MarkovPrior,
    MeanFieldPosterior,
    ModuleEmission,
    NadeEmission,
    NegativeBinomialEmission,
    PoissonEmission,
)
from dmm_fast.infer._particles import sample_sites
from dmm_fast.ops._backends import may_use

# The kernel for the loss is a single program, which limits the number of elements.
MOST_NUMBERS = 1 << 14

_POSTERIORS = (MarkovPosterior, MeanFieldPosterior)
_EMISSIONS = (
    BernoulliEmission,
    CategoricalEmission,
    GaussianEmission,
    ModuleEmission,
    NadeEmission,
    NegativeBinomialEmission,
    PoissonEmission,
)
_OURS = (*_EMISSIONS, MarkovPrior, *_POSTERIORS)


class Term(NamedTuple):
    """A log-density or divergence in the ELBO, multiplied by ``scale`` and added (1) or subtracted (-1).

    ``compute(gradient)`` returns its value for each row and, if the incoming gradient is given, computes its
    gradients too; ``like`` is a tensor of its shape, dtype and device, and ``name`` is that of its site.
    """

    name: str
    compute: Callable[[Tensor | None], Tensor]
    like: Tensor
    scale: float | Tensor
    sign: int


class SequenceELBO(Trace_ELBO):
    """The same estimator as ``elbo``, computed with fewer operations.

    Each term of the ELBO and its gradients come from one pass over the networks, no unused quantities are
    computed, and guide and model check their mini-batch and register their parameters only once. It is a loss
    for ``SVI``, also on a CPU, and for :class:`GraphedSVI`::

        svi = SVI(dmm.model, dmm.guide, optimizer, loss=SequenceELBO(Trace_ELBO()))

    Losses and gradients equal those of ``elbo`` except for rounding. If a site's distribution is not one of
    :mod:`dmm_fast.distributions`, is masked, or has a scale of several elements or with a gradient, Pyro's
    own computation is used, as it always is in :meth:`loss` and :meth:`differentiable_loss`. All checks of
    Pyro's validation are made. Between guide and model of a step, change data by operations of torch only:
    changes by numpy or through ``.data`` are not noticed.

    Args:
        elbo: Pyro's ``Trace_ELBO`` or ``TraceMeanField_ELBO``; its attributes are shared.

    Raises:
        TypeError: ``elbo`` is anything else; a subclass would be another estimator.
    """

    def __new__(cls, elbo: Trace_ELBO) -> "SequenceELBO":
        return object.__new__(_SequenceMeanFieldELBO if isinstance(elbo, TraceMeanField_ELBO) else cls)

    def __init__(self, elbo: Trace_ELBO) -> None:
        if type(elbo) not in (Trace_ELBO, TraceMeanField_ELBO):
            expected = "Pyro's Trace_ELBO or TraceMeanField_ELBO itself"
            check.fail("elbo", expected, check.describe(elbo), TypeError)
        self.__dict__ = elbo.__dict__

    def __reduce__(self) -> Any:
        return SequenceELBO, (self._plain(),)

    def _plain(self) -> Any:
        """Pyro's estimator, with the same attributes."""
        plain = object.__new__(TraceMeanField_ELBO if isinstance(self, TraceMeanField_ELBO) else Trace_ELBO)
        plain.__dict__ = self.__dict__
        return plain

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        """As in Pyro, but log-densities are not computed yet, since the terms may need other operations."""
        if isinstance(poutine.unwrap(guide), Messenger):
            traces: tuple[Trace, Trace] = super()._get_trace(model, guide, args, kwargs)
            return traces
        with one_step():
            guide_trace = poutine.trace(guide, graph_type="flat").get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed, graph_type="flat").get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            check_if_enumerated(guide_trace)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The loss as a number, without gradients, by Pyro's own method."""
        return self._plain().loss(model, guide, *args, **kwargs)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss as a tensor that autograd can differentiate any number of times, by Pyro's own method."""
        return self._plain().differentiable_loss(model, guide, *args, **kwargs)

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any]:
        terms = self._terms(model_trace, guide_trace)
        sites = (*sample_sites(model_trace), *sample_sites(guide_trace))
        if terms is None:
            model_trace.compute_log_prob()
            guide_trace.compute_score_parts()
            if is_validation_enabled():
                for site in sites:
                    check_site_shape(site, self.max_plate_nesting)
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        if is_validation_enabled():
            for site in sites:
                shaped: Any = {**site, "log_prob": _rows_of(site["fn"], site["value"])}
                check_site_shape(shaped, self.max_plate_nesting)
        gradients = gradients_of(terms, self.num_particles)
        # Gradients that are computed together with the value can be used only once.
        told = [None] * len(terms) if self.retain_graph else gradients
        computed = [term.compute(gradient) for term, gradient in zip(terms, told, strict=True)]
        if is_validation_enabled():
            for term, value in zip(terms, computed, strict=True):
                warn_if_nan(value.detach().sum(), f"log_prob_sum at site '{term.name}'")
        return torch_item(loss_of(terms, computed)), _Surrogate(computed, gradients)

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> list[Term] | None:
        """The terms of the ELBO; None if Pyro's own computation is needed."""
        sites = [(site, 1) for site in sample_sites(model_trace)]
        sites += [(site, -1) for site in sample_sites(guide_trace)]
        if not all(_is_plain(site, sign) for site, sign in sites):
            return None
        return [_log_density(site, sign) for site, sign in sites]


class _SequenceMeanFieldELBO(SequenceELBO, TraceMeanField_ELBO):
    """:class:`SequenceELBO` for ``TraceMeanField_ELBO``: an analytic KL replaces two log-densities."""

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        if is_validation_enabled():
            _check_mean_field_requirement(model_trace, guide_trace)
        return model_trace, guide_trace

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> list[Term] | None:
        drawn = {site["name"]: site for site in sample_sites(guide_trace)}
        terms = []
        for site in sample_sites(model_trace):
            posterior = drawn.pop(site["name"], None)
            if posterior is None:
                if not (site["is_observed"] and _is_plain(site, 1)):
                    return None
                terms.append(_log_density(site, 1))
            elif (
                _is_plain(site, 1)
                and not site["is_observed"]
                and _is_plain(posterior, -1)
                and type(posterior["fn"]) in _POSTERIORS
                and type(site["fn"]) is MarkovPrior
                and not posterior["fn"].flows
            ):
                terms.append(_divergence(posterior, site))
            else:
                return None
        return None if drawn else terms  # the guide may have sites that the model lacks


class _Surrogate:
    """The differentiable loss, already divided by the number of particles."""

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


def gradients_of(terms: list[Term], num_particles: int) -> list[Tensor]:
    """The gradient of the negative ELBO with respect to each term, divided by ``num_particles``."""
    if _by_triton(terms):
        from dmm_fast.triton import elbo

        return elbo.gradients_of([(term.like, term.scale, term.sign) for term in terms], num_particles)
    made = []
    for _, _, like, scale, sign in terms:
        weight = -sign / num_particles
        if isinstance(scale, Tensor):
            made.append(torch.full_like(like, weight) * scale)
        else:
            made.append(torch.full_like(like, weight * scale))
    return made


def loss_of(terms: list[Term], computed: list[Tensor]) -> Tensor:
    """The negative ELBO in float64."""
    if _by_triton(terms):
        from dmm_fast.triton import elbo

        pairs = zip(terms, computed, strict=True)
        return elbo.loss_of([(value.detach(), term.scale, term.sign) for term, value in pairs])
    with torch.no_grad():
        summed = [
            -term.sign * (value * term.scale).sum().double()
            for term, value in zip(terms, computed, strict=True)
        ]
    return torch.as_tensor(sum(summed))


def _by_triton(terms: Iterable[Term]) -> bool:
    return (
        triton.missing is None
        and may_use("triton")
        and all(
            term.like.is_cuda
            and term.like.dtype in triton.DTYPES
            and term.like.numel() <= MOST_NUMBERS
            and (not isinstance(term.scale, Tensor) or term.scale.device == term.like.device)
            for term in terms
        )
    )


def _is_plain(site: dict[str, Any], sign: int) -> bool:
    """True if a site's term and its gradient are the log-density and its gradient times one number."""
    scale = site["scale"]
    return (
        "log_prob" not in site
        and type(site["fn"]) in _OURS
        and site["mask"] is None
        and (_is_constant(scale) if isinstance(scale, Tensor) else isinstance(scale, int | float))
        and (sign > 0 or (site["fn"].has_rsample and not site["is_observed"]))
    )


def _is_constant(scale: Tensor) -> bool:
    """True if a scale has a single element and no gradient."""
    return scale.dim() == 0 and not scale.requires_grad


def _log_density(site: dict[str, Any], sign: int) -> Term:
    distribution, value = site["fn"], site["value"]

    def compute(gradient: Tensor | None) -> Tensor:
        log_prob: Tensor = distribution._log_prob(value, gradient)
        return log_prob

    return Term(site["name"], compute, _rows_of(distribution, value), site["scale"], sign)


def _divergence(posterior: dict[str, Any], prior: dict[str, Any]) -> Term:
    q, p = posterior["fn"], prior["fn"]

    def compute(gradient: Tensor | None) -> Tensor:
        divergence: Tensor = q._spread(q._kl_to(p, gradient))
        return divergence

    return Term(posterior["name"], compute, _rows_of(q, posterior["value"]), posterior["scale"], -1)


def _rows_of(distribution: Any, value: Tensor) -> Tensor:
    """A tensor of the shape and dtype of the log-densities, whose values are not read."""
    rows = value.shape[: value.dim() - distribution.event_dim]
    return value.detach().new_empty(()).expand(torch.broadcast_shapes(distribution.batch_shape, rows))
