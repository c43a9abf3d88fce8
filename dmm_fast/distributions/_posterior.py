"""The posterior chain of the latents, which the guide draws from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.kl import register_kl
from typing_extensions import Self

from dmm_fast import check, ops
from dmm_fast.distributions._prior import MarkovPrior
from dmm_fast.distributions._sequence import (
    Network,
    SequenceDistribution,
    checked_min_scale,
    loc_and_scale,
    standard_noise,
    valid,
)
from dmm_fast.ops import CombinerWeights
from dmm_fast.reference import previous


class Draw(NamedTuple):
    """A draw of the posterior ``[..., B, T, Z]`` and what its log-density is made of.

    ``loc`` and ``softplus(pre_scale)`` are those of q(z_t | z_{t-1}, x_{t:T}) before any flow, ``eps`` the
    noise, ``log_det [..., B]`` the flows' log-determinants summed over valid steps (None without flows).
    """

    z: Tensor
    eps: Tensor
    loc: Tensor
    pre_scale: Tensor
    log_det: Tensor | None


class MarkovPosterior(SequenceDistribution):
    """q(z_{1:T} | x_{1:T}) = prod_t q(z_t | z_{t-1}, h_t) over ``[T, Z]``.

    The log-density of the last draw is taken from its own noise (its gradient is that of the
    reparameterised draw, and it stays finite where a scale underflows); any other value is
    evaluated as it stands, all steps at once. The draw is known by identity: do not change it in
    place. With flows, evaluating another value inverts them, which Pyro does in torch's default
    dtype only.

    Args:
        h: ``[B, T, H]``, what the inference network gives.
        z_q_0: ``[Z]``, what stands for z_0 in the guide.
        combiner: the weights of a combiner; or a network that gives ``loc, scale`` of
            q(z_t | z_{t-1}, x_{t:T}), each ``[..., Z]``, for ``z_{t-1} [..., Z]`` and ``h_t [..., H]``.
        lengths: int64 ``[B]``.
        flows: Pyro transforms, each applied to z_t at every step (normalizing flows).
        min_scale: added to every scale.

    Source: arXiv 1609.09869, section 4 (structured inference, DKS).
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        h: Tensor,
        z_q_0: Tensor,
        combiner: CombinerWeights | Network,
        lengths: Tensor,
        flows: Sequence[Any] = (),
        min_scale: float = 0.0,
    ) -> None:
        B, T, _ = check.sequences("h", h)
        check.lengths(lengths, B, T, h.device)
        check.like("z_q_0", z_q_0, h, "h")
        check.trailing("z_q_0", z_q_0, (-1,), "[Z]")
        check.broadcastable("z_q_0", z_q_0, (*h.shape[:-2], z_q_0.shape[-1]), "[..., B, Z]")
        if isinstance(combiner, CombinerWeights):
            sizes = {"H": h.shape[-1], "Z": z_q_0.shape[-1]}
            self._check_weights("combiner", "combiner", combiner, h, "h", **sizes)
        else:
            check.function("combiner", combiner)
        check.kind("flows", flows, list, tuple)
        for i, flow in enumerate(flows):
            check.kind(f"flows[{i}]", flow, Transform)
        self.h, self.z_q_0, self.combiner = h, z_q_0, combiner
        self.flows, self.min_scale = tuple(flows), checked_min_scale(min_scale)
        self._draw: Draw | None = None
        super().__init__(h.shape[:-2], torch.Size((T, z_q_0.shape[-1])), lengths)

    @property
    def last_draw(self) -> Draw:
        """The last draw and what it was made of.

        Raises:
            RuntimeError: there is none.
        """
        if self._draw is None:
            check.fail("posterior", "a draw before this", "none", RuntimeError)
        return self._draw

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """See :meth:`SequenceDistribution.expand`; a draw stays with the distribution that made it."""
        new = super().expand(batch_shape, _instance)
        new._draw = None
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]`` that carries no gradient."""
        with torch.no_grad():
            z = self.rsample(sample_shape)
        # Its density must still have one, which only the evaluation of a given value gives.
        self._draw = None
        return z

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]``."""
        eps = standard_noise(self._shape_of(sample_shape), self.h)
        if isinstance(self.combiner, CombinerWeights) and not self.flows:
            self._draw = self._scan(eps, self.combiner)
        else:
            self._draw = self._scan_step_by_step(eps)
        return self._draw.z

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        draw = self._draw
        if draw is None or value is not draw.z:
            self._check_value(value, self.h)
            return self._spread(self._log_prob_of_any(value))
        given = (draw.eps, draw.pre_scale, self.lengths)
        log_prob: Tensor = self._compute("drawn_log_prob", *given, gradient=gradient)
        return log_prob if draw.log_det is None else log_prob - draw.log_det

    def kl_to(self, prior: MarkovPrior) -> Tensor:
        """``[..., B]``: the analytic KL of each step at the last draw, summed; see :func:`register_kl`."""
        check.kind("prior", prior, MarkovPrior)
        return self._kl_to(prior)

    def _kl_to(self, prior: MarkovPrior, gradient: Tensor | None = None) -> Tensor:
        """:meth:`kl_to`; with its gradients at once where the incoming ``gradient`` is told."""
        if self.flows:
            raise NotImplementedError("kl_divergence: a posterior with flows has no analytic KL")
        draw = self.last_draw
        return prior._kl_from(draw.z, draw.loc, draw.pre_scale, gradient)

    def _scan(self, eps: Tensor, weights: CombinerWeights) -> Draw:
        if self.min_scale == 0:
            z, loc, pre_scale = self._compute("combiner_scan", self.h, eps, self.z_q_0, weights, self.lengths)
            return Draw(z, eps, loc, pre_scale, None)
        # z_t = (loc + m eps_t) + softplus(pre_scale) eps_t: as far as the scan knows m eps_t is a part of the
        # location. It gets there through Z more hidden units, whose halves the loc head adds as they are.
        Z = eps.shape[-1]
        shift = self.min_scale * eps
        h = torch.cat([self.h.expand(*eps.shape[:-1], -1), 2.0 * shift], dim=-1)
        wider = CombinerWeights(
            w_z=F.pad(weights.w_z, (0, 0, 0, Z)),
            b_z=F.pad(weights.b_z, (0, Z)),
            w_loc=torch.cat([weights.w_loc, torch.eye(Z, dtype=eps.dtype, device=eps.device)], dim=1),
            b_loc=weights.b_loc,
            w_scale=F.pad(weights.w_scale, (0, Z)),
            b_scale=weights.b_scale,
        )
        z, loc, pre_scale = self._compute("combiner_scan", h, eps, self.z_q_0, wider, self.lengths)
        shift = torch.where(valid(self.lengths, eps.shape[-2]), shift, 0.0)
        return Draw(z, eps, loc - shift, self._raised(pre_scale), None)

    def _scan_step_by_step(self, eps: Tensor) -> Draw:
        """The draw with every z_t sent through the flows before the next step reads it."""
        keep = valid(self.lengths, eps.shape[-2])
        h = torch.where(keep, self.h, 0.0)
        z_t = self.z_q_0.expand_as(eps[..., 0, :])
        steps = []
        for t in range(eps.shape[-2]):
            now = slice(t, t + 1)
            base, loc, pre_scale = self._draw_step(z_t, h[..., now, :], eps[..., now, :])
            flowed, log_det = base, torch.zeros_like(base[..., 0])
            for flow in self.flows:
                before, flowed = flowed, flow(flowed)
                log_det = log_det + flow.log_abs_det_jacobian(before, flowed)
            # A chain that went on past the end of its row could grow without bound.
            z_t = torch.where(keep[:, t], flowed.squeeze(-2), 0.0)
            steps.append((flowed, loc, pre_scale, log_det.unsqueeze(-1)))
        z, loc, pre_scale, log_det = (
            torch.where(keep, torch.cat(s, dim=-2), 0.0) for s in zip(*steps, strict=True)
        )
        return Draw(z, eps, loc, pre_scale, log_det.sum((-2, -1)) if self.flows else None)

    def _draw_step(self, z_prev: Tensor, h: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``z, loc, pre_scale`` of one step, each ``[..., B, 1, Z]``, before any flow."""
        if isinstance(self.combiner, CombinerWeights):
            once = torch.ones_like(self.lengths)
            z, loc, pre_scale = self._compute("combiner_scan", h, eps, z_prev, self.combiner, once)
            return z + self.min_scale * eps, loc, self._raised(pre_scale)
        loc, scale = self._conditional(z_prev.unsqueeze(-2), h)
        return loc + scale * eps, loc, _inverse_softplus(scale)

    def _conditional(self, z_prev: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}) for any number of steps, before any flow."""
        h = h.expand(*z_prev.shape[:-1], -1)
        if isinstance(self.combiner, CombinerWeights):
            loc, scale = ops.combiner(z_prev, h, self.combiner)
        else:
            loc, scale = loc_and_scale("combiner", self.combiner(z_prev, h), z_prev.shape, z_prev.dtype)
        return loc, scale + self.min_scale if self.min_scale else scale

    def _raised(self, pre_scale: Tensor) -> Tensor:
        """``pre_scale`` for a scale that is larger by ``min_scale``."""
        return _inverse_softplus(F.softplus(pre_scale) + self.min_scale) if self.min_scale else pre_scale

    def _log_prob_of_any(self, value: Tensor) -> Tensor:
        if isinstance(self.combiner, CombinerWeights) and not self.flows and not self.min_scale:
            return ops.combiner_log_prob(value, self.h, self.z_q_0, self.combiner, self.lengths)
        keep = valid(self.lengths, value.shape[-2])
        value = torch.where(keep, value, 0.0)
        loc, scale = self._conditional(previous(value, self.z_q_0), torch.where(keep, self.h, 0.0))
        base, log_det = value, torch.zeros_like(value[..., 0])
        for flow in reversed(self.flows):
            after, base = base, flow.inv(base)
            log_det = log_det + flow.log_abs_det_jacobian(base, after)
        log_det = torch.where(keep.squeeze(-1), log_det, 0.0).sum(-1)
        return ops.normal_log_prob(base, loc, scale, self.lengths) - log_det


def _inverse_softplus(scale: Tensor) -> Tensor:
    return scale + torch.log(-torch.expm1(-scale))


@register_kl(MarkovPosterior, MarkovPrior)
def _kl_posterior_prior(q: MarkovPosterior, p: MarkovPrior) -> Tensor:
    """Sum of the steps' analytic KL at the last draw: unbiased for KL(q || p), and less noisy."""
    return q._spread(q.kl_to(p))
