"""The importance-weighted bound of each sequence as a loss, with three estimators of its gradient."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor

from dmm_fast import check
from dmm_fast._arguments import GRADIENTS
from dmm_fast._one_step import one_step
from dmm_fast.distributions._drawn_posterior import DrawnPosterior
from dmm_fast.infer._particles import sample_sites, traces_of_particles

_ROW_DIMS = 2  # particles and rows


class _Weights(NamedTuple):
    """``log_weights [P, B]``, and the ``scale`` of the loss, a number or a tensor that broadcasts to rows."""

    log_weights: Tensor
    scale: float | Tensor


class ImportanceELBO(ELBO):
    r"""The importance-weighted bound (IWAE), with weights of each sequence, as a loss for ``SVI``.

    With ``P`` particles :math:`z_b^p \sim q(z \mid x_b)` of each sequence ``b``, in nats:

    .. math::

        L = -\sum_b \log \frac1P \sum_{p=1}^P w_b^p, \qquad
        \log w_b^p = \log p(x_b \mid z_b^p)
        + \beta \bigl(\log p(z_b^p) - \log q(z_b^p \mid x_b)\bigr),

    where :math:`\beta` is the annealing factor, or in general the scale of a site. At :math:`\beta = 1` it is
    an upper bound on :math:`-\sum_b \log p(x_b)`, tighter with more particles; with one particle it is the
    negative ELBO. Pyro's ``RenyiELBO`` weights whole mini-batches: it takes the mean over ``p`` of the
    *product* over sequences, which is dominated by one particle for all of them.

    It is a loss for ``SVI`` and for :class:`GraphedSVI`, also of several processes::

        svi = GraphedSVI(dmm.model, dmm.guide, optimizer, ImportanceELBO(num_particles=5, gradient="dreg"))

    ``gradient`` selects the estimator of the gradient; the loss is the same. With
    :math:`\tilde w^p = w^p / \sum_k w^k`:

    * ``"total"``: the derivative of ``L`` for the same noise. For the guide its signal vanishes faster than
      its noise as ``P`` grows.
    * ``"path"``: the derivative through the draws alone, without that of ``log q`` by its parameters. Its
      mean differs from the gradient of ``L`` if ``P > 1``.
    * ``"dreg"``: doubly reparameterised. Parameters of the model have the gradient of ``"total"``. That of
      the guide flows through the draws alone, multiplied once more by :math:`1 - \beta + \beta \tilde w^p`,
      which is :math:`\tilde w^p` at :math:`\beta = 1`. Its mean is the gradient of ``L``.

    ``"path"`` and ``"dreg"`` are for guides whose sites are :class:`~dmm_fast.distributions.MarkovPosterior`
    or :class:`~dmm_fast.distributions.MeanFieldPosterior`, as those of a DMM are, except with
    ``per_step_sites=True``.

    All particles are computed at once, so that a step takes ``P`` times the memory and arithmetic of one with
    a single particle, except for the inference network, which runs once.

    A scale that all sites have in common, such as that of a plate that subsamples a data set, multiplies the
    loss and not the log-weights: it is read from the first observed site.

    Args:
        num_particles: number ``P`` of draws of each sequence.
        gradient: ``"total"``, ``"path"`` or ``"dreg"``.

    Raises:
        ValueError: ``num_particles`` is not positive, or ``gradient`` is another name. A step raises one if
            a site of the guide does not admit the ``gradient``: its distribution is another one, or for
            ``"path"`` and ``"dreg"`` its value is not the draw that it made, but given.
        TypeError: ``num_particles`` is not an int.

    Source: Burda et al., arXiv 1509.00519 (the bound); Roeder et al., arXiv 1703.09194 (path); Tucker et al.,
    arXiv 1810.04152 (doubly reparameterised, and the bias of the path gradient).
    """

    def __init__(self, num_particles: int = 1, gradient: str = "total") -> None:
        check.size("num_particles", num_particles)
        if not isinstance(gradient, str) or gradient not in GRADIENTS:
            check.fail("gradient", f"one of {', '.join(GRADIENTS)}", check.describe(gradient))
        super().__init__(num_particles, max_plate_nesting=_ROW_DIMS)
        self.gradient = gradient

    @torch.no_grad()
    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The loss as a number, without gradients."""
        return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss as a number; its gradients are added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss as a tensor of no dimension, whose backward pass gives the gradient ``gradient``."""
        with one_step():
            log_weights, scale = self._weights(model, guide, args, kwargs)
        bounds = log_weights.logsumexp(0) - math.log(self.num_particles)
        return -(bounds * scale).sum()

    def _get_trace(self, *args: Any) -> NoReturn:
        raise NotImplementedError("_get_trace: all particles of this estimator are traced together")

    def _weights(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> _Weights:
        """The log-weights, with a backward pass for ``gradient``."""
        guide_trace, model_trace = traces_of_particles(model, guide, self.num_particles, args, kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            check_if_enumerated(guide_trace)
        traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        of_model, of_guide = (list(sample_sites(trace)) for trace in traces)
        for site in of_guide:
            self._prepare(site)
        if self.gradient == "dreg" and len(of_guide) > 1:
            # A draw on which another depends would have its gradient multiplied once for each of them.
            check.fail("gradient", "'total' or 'path' with several sites in the guide", "'dreg'")
        common = next((site["scale"] for site in of_model if site["is_observed"]), 1.0)
        terms = [self._log_density(site, common) for site in of_model]
        terms += [-self._log_density(site, common) for site in of_guide]
        log_weights = torch.stack(torch.broadcast_tensors(*terms)).sum(0) if terms else torch.zeros(())
        if log_weights.dim() < _ROW_DIMS:
            check.fail("model", "sites in a plate of the rows of a mini-batch", "none")
        if self.gradient == "dreg":
            normalised = log_weights.detach().softmax(0)
            for site in of_guide:
                _weight_gradient(site, normalised, _relative(site["scale"], common))
        return _Weights(log_weights, common)

    def _log_density(self, site: Any, common: float | Tensor) -> Tensor:
        """The site's term of the log-weights, of a shape that broadcasts to ``[P, B]``."""
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        scaled: Tensor = scale_and_mask(log_prob, _relative(site["scale"], common), site["mask"])
        if is_validation_enabled():
            shaped: Any = {**site, "log_prob": scaled}
            check_site_shape(shaped, self.max_plate_nesting)
            warn_if_nan(scaled.detach().sum(), f"log_prob_sum at site '{site['name']}'")
        return scaled

    def _prepare(self, site: Any) -> None:
        """Check a site of the guide, and have its log-density differentiated as ``gradient`` says."""
        drawn, name = site["fn"], f"site {site['name']!r}"
        if site["is_observed"] or not drawn.has_rsample:
            expected = "a reparameterised distribution in the guide"
            check.fail(name, expected, f"a {type(drawn).__name__} that is not")
        if self.gradient == "total":
            if getattr(drawn, "path_gradient", False):
                expected = "'path' or 'dreg' with a guide whose path_gradient is True"
                check.fail("gradient", expected, repr(self.gradient))
        elif isinstance(drawn, DrawnPosterior):
            if not drawn.has_drawn(site["value"]):
                expected = f"a draw of the guide, which has a path, for gradient={self.gradient!r}"
                check.fail(name, expected, "another value")
            drawn.use_path_gradient()
        else:
            expected = f"a MarkovPosterior or a MeanFieldPosterior for gradient={self.gradient!r}"
            check.fail(name, expected, f"a {type(drawn).__name__}")


def _relative(scale: float | Tensor, common: float | Tensor) -> float | Tensor:
    """A site's scale divided by the one that all sites have in common."""
    return 1.0 if scale is common else scale / common


def _weight_gradient(site: Any, normalised: Tensor, factor: float | Tensor) -> None:
    """Have the gradient of a draw multiplied by ``1 - factor + factor * normalised`` on its way to q."""
    value, event_dim = site["value"], site["fn"].event_dim
    if value.requires_grad:
        weights = (1.0 - factor + factor * normalised)[(...,) + (None,) * event_dim]
        value.register_hook(lambda gradient: gradient * weights)
