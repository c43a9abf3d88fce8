"""A posterior that keeps its last draw, whose log-density follows from its noise."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from typing_extensions import Self

from dmm_fast import _flows, check, ops
from dmm_fast.distributions import _path_gradient
from dmm_fast.distributions._path_gradient import ToPrevious
from dmm_fast.distributions._prior import MarkovPrior
from dmm_fast.distributions._sequence import (
    SequenceDistribution,
    checked_min_scale,
    standard_noise,
    valid,
)


class Draw(NamedTuple):
    """A draw of the posterior ``[..., B, T, Z]`` and the terms of its log-density.

    ``loc`` and ``softplus(pre_scale)`` are those of q(z_t | z_{t-1}, x) before any flow, ``eps`` is the
    noise, and ``log_det [..., B]`` the flows' log-determinants summed over valid steps (None without flows).
    """

    z: Tensor
    eps: Tensor
    loc: Tensor
    pre_scale: Tensor
    log_det: Tensor | None


class DrawnPosterior(SequenceDistribution):
    """A posterior that keeps its last draw, whose log-density follows from its noise without inverting flows.

    Subclasses implement drawing (:meth:`_draw_from`) and the density of other values
    (:meth:`_conditional_of`); those whose steps depend on each other, also :meth:`_to_previous`.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        h: Tensor,
        Z: int,
        lengths: Tensor,
        flows: Sequence[Any] = (),
        min_scale: float = 0.0,
        path_gradient: bool = False,
    ) -> None:
        self.h, self.flows, self.min_scale = h, _flows.checked(flows, Z), checked_min_scale(min_scale)
        self._draw: Draw | None = None
        self._path_gradient = False
        check.kind("path_gradient", path_gradient, bool)
        if path_gradient:
            self.use_path_gradient()
        super().__init__(h.shape[:-2], torch.Size((h.shape[-2], Z)), lengths)

    @property
    def path_gradient(self) -> bool:
        """True if the gradient of the last draw's log-density is that through the draw alone."""
        return self._path_gradient

    def use_path_gradient(self) -> None:
        """Give the last draw's log-density the gradient through the draw alone, from now on.

        Raises:
            ValueError: a flow is not an affine autoregressive one with one hidden layer, or the steps depend
                on each other through a module with active dropout.
        """
        _path_gradient.check_flows(self.flows)
        self._path_gradient = True

    @property
    def last_draw(self) -> Draw:
        """The last draw and the terms of its log-density.

        Raises:
            RuntimeError: nothing has been drawn.
        """
        if self._draw is None:
            check.fail("posterior", "a draw before this", "none", RuntimeError)
        return self._draw

    def has_drawn(self, value: Tensor) -> bool:
        """True if ``value`` is the last draw itself."""
        return self._draw is not None and value is self._draw.z

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """See :meth:`SequenceDistribution.expand`; the last draw is not copied to the new distribution."""
        new = super().expand(batch_shape, _instance)
        new._draw = None
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]`` that carries no gradient."""
        with torch.no_grad():
            z = self.rsample(sample_shape)
        # The log-density must still have gradients, so it is computed as for any given value.
        self._draw = None
        return z

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]``."""
        self._draw = self._draw_from(standard_noise(self._shape_of(sample_shape), self.h))
        return self._draw.z

    def _draw_from(self, eps: Tensor) -> Draw:
        """The draw for the noise ``eps [..., B, T, Z]``."""
        raise NotImplementedError

    def _conditional_of(self, value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of each step before any flow, given the earlier steps of ``value``."""
        raise NotImplementedError

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        if not self.has_drawn(value):
            self._check_value(value, self.h)
            return self._spread(self._log_prob_of_any(value))
        draw = self.last_draw
        if self._path_gradient and torch.is_grad_enabled() and draw.z.requires_grad:
            return self._log_prob_by_path(draw)
        given = (draw.eps, draw.pre_scale, self.lengths)
        log_prob: Tensor = self._compute("drawn_log_prob", *given, gradient=gradient)
        return log_prob if draw.log_det is None else log_prob - draw.log_det

    def _log_prob_by_path(self, draw: Draw) -> Tensor:
        """The log-density of a draw, from its noise, with its path gradient."""
        with torch.no_grad():
            log_prob: Tensor = self._compute("drawn_log_prob", draw.eps, draw.pre_scale, self.lengths)
            log_prob = log_prob if draw.log_det is None else log_prob - draw.log_det
        given, keep = self._to_previous(draw), valid(self.lengths, draw.z.shape[-2])
        slope = _path_gradient.slope_of(draw.z, draw.eps, draw.pre_scale, keep, self.flows, given)
        return _path_gradient.with_slope(log_prob, draw.z, slope)

    def _to_previous(self, draw: Draw) -> ToPrevious | None:
        """The dependence of each step of a draw on the one before; None if there is none."""
        return None

    def _log_prob_of_any(self, value: Tensor) -> Tensor:
        keep = valid(self.lengths, value.shape[-2])
        value = torch.where(keep, value, 0.0)
        loc, scale = self._conditional_of(value, torch.where(keep, self.h, 0.0))
        if not self.flows:
            return ops.normal_log_prob(value, loc, scale, self.lengths)
        base, log_det = _flows.invert(self.flows, value)
        log_det = torch.where(keep.squeeze(-1), log_det, 0.0).sum(-1)
        return ops.normal_log_prob(base, loc, scale, self.lengths) - log_det

    def kl_to(self, prior: MarkovPrior) -> Tensor:
        """``[..., B]``: the analytic KL of each step at the last draw, summed over steps, in nats."""
        check.kind("prior", prior, MarkovPrior)
        return self._kl_to(prior)

    def _kl_to(self, prior: MarkovPrior, gradient: Tensor | None = None) -> Tensor:
        """:meth:`kl_to`; with the incoming ``gradient`` given, its gradients are computed at once too."""
        if self.flows:
            raise NotImplementedError("kl_divergence: a posterior with flows has no analytic KL")
        if self._path_gradient:
            expected = "False for an analytic KL, which has no log q: sample it, as Trace_ELBO does"
            check.fail("path_gradient", expected, "True")
        draw = self.last_draw
        return prior._kl_from(draw.z, draw.loc, draw.pre_scale, gradient)

    def _raised(self, pre_scale: Tensor) -> Tensor:
        """The ``pre_scale`` of a scale increased by ``min_scale``."""
        return inverse_softplus(F.softplus(pre_scale) + self.min_scale) if self.min_scale else pre_scale


def inverse_softplus(scale: Tensor) -> Tensor:
    """The ``pre_scale`` with this ``scale = softplus(pre_scale)``."""
    return scale + torch.log(-torch.expm1(-scale))


@register_kl(DrawnPosterior, MarkovPrior)
def _kl_posterior_prior(q: DrawnPosterior, p: MarkovPrior) -> Tensor:
    """Sum of the steps' analytic KL at the last draw: an unbiased, less noisy estimate of KL(q || p)."""
    return q._spread(q.kl_to(p))
