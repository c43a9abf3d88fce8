"""The guide's posterior of the latents: a Markov chain, or independent steps (mean-field)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm_fast import _flows, check, ops
from dmm_fast._reference_pieces import positive_softplus
from dmm_fast.distributions import _path_gradient
from dmm_fast.distributions._drawn_posterior import Draw, DrawnPosterior, inverse_softplus
from dmm_fast.distributions._path_gradient import ToPrevious
from dmm_fast.distributions._sequence import (
    Network,
    check_network,
    loc_and_scale,
    valid,
)
from dmm_fast.ops import CombinerWeights, FlowWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import MeanFieldWeights, mean_field, previous


class MarkovPosterior(DrawnPosterior):
    """q(z_{1:T} | x_{1:T}) = prod_t q(z_t | z_{t-1}, h_t) over ``[T, Z]``.

    The log-density of the last draw is computed from its noise: its gradient is that of the reparameterised
    draw, and it stays finite if a scale underflows. For any other value it is computed directly, for all
    steps at once. The last draw is recognised by identity: do not change it in place. With flows, the density
    of another value inverts them, one latent after another.

    Args:
        h: ``[B, T, H]``, the output of the inference network.
        z_q_0: ``[Z]``, the guide's initial state, in place of z_0.
        combiner: the weights of a combiner; or a network that maps ``z_{t-1} [..., Z]`` and ``h_t [..., H]``
            to ``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}), each ``[..., Z]``.
        lengths: int64 ``[B]``.
        flows: Pyro transforms (normalizing flows), all applied to z_t at every step. Flows created by
            ``affine_autoregressive(Z, hidden_dims=[F])`` are computed by one op together with the scan;
            others are applied step by step.
        min_scale: added to every scale, before any flow.
        path_gradient: the gradient of the last draw's log-density flows through the draw alone, as if the
            parameters of q were constants; its value is the same. The gradient of the ELBO stays unbiased and
            its variance vanishes where q is exact. Any other value has no path from the parameters, and its
            log-density keeps its whole gradient. It takes affine autoregressive flows only, which are then
            inverted, one latent after another. A network in place of weights is evaluated once more, for all
            steps at once, and must compute the same as for the draw.

    Raises:
        ValueError: an argument is invalid, or ``path_gradient`` is set with other flows or active dropout.
        TypeError: an argument has the wrong type.

    Source: arXiv 1609.09869, section 4 (structured inference: ST-L, DKS and ST-LR of its table 1);
    arXiv 1703.09194 (path gradient).
    """

    def __init__(
        self,
        h: Tensor,
        z_q_0: Tensor,
        combiner: CombinerWeights | Network,
        lengths: Tensor,
        flows: Sequence[Any] = (),
        min_scale: float = 0.0,
        path_gradient: bool = False,
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
            check_network("combiner", combiner, "z_{t-1}", "h_t")
        self.z_q_0, self.combiner = z_q_0, combiner
        super().__init__(h, z_q_0.shape[-1], lengths, flows, min_scale, path_gradient)

    def use_path_gradient(self) -> None:
        """As in the base class, after a check of the combiner, which is evaluated once more for it."""
        _path_gradient.check_combiner(self.combiner)
        super().use_path_gradient()

    def _draw_from(self, eps: Tensor) -> Draw:
        weights = self.combiner
        if not isinstance(weights, CombinerWeights) or _flows.why_no_weights(self.flows) is not None:
            return self._scan_step_by_step(eps)
        flows = None
        if self.flows:
            flows = _flows.weights_of(self.flows)
            self._check_weights("flows", "flows", flows, self.h, "h", Z=eps.shape[-1])
        return self._scan(eps, weights, flows)

    def _scan(self, eps: Tensor, weights: CombinerWeights, flows: FlowWeights | None) -> Draw:
        if self.min_scale == 0:
            return self._scan_of(self.h, eps, weights, flows)
        # z_t = (loc + m eps_t) + softplus(pre_scale) eps_t: the scan computes m eps_t as a part of the
        # location, through Z more hidden units, whose halves the loc head adds with identity weights.
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
        draw = self._scan_of(h, eps, wider, flows)
        shift = torch.where(valid(self.lengths, eps.shape[-2]), shift, 0.0)
        return draw._replace(loc=draw.loc - shift, pre_scale=self._raised(draw.pre_scale))

    def _scan_of(self, h: Tensor, eps: Tensor, weights: CombinerWeights, flows: FlowWeights | None) -> Draw:
        if flows is None:
            z, loc, pre_scale = self._compute("combiner_scan", h, eps, self.z_q_0, weights, self.lengths)
            return Draw(z, eps, loc, pre_scale, None)
        given = (h, eps, self.z_q_0, weights, flows, self.lengths)
        z, loc, pre_scale, log_det = self._compute("flow_scan", *given)
        return Draw(z, eps, loc, pre_scale, log_det)

    def _scan_step_by_step(self, eps: Tensor) -> Draw:
        """The draw with the flows applied to every z_t before the next step reads it."""
        keep = valid(self.lengths, eps.shape[-2])
        h = torch.where(keep, self.h, 0.0)
        z_t = self.z_q_0.expand_as(eps[..., 0, :])
        flow_weights, steps = _flows.weights_if_any(self.flows), []
        for t in range(eps.shape[-2]):
            now = slice(t, t + 1)
            base, loc, pre_scale = self._draw_step(z_t, h[..., now, :], eps[..., now, :])
            flowed, log_det = _flows.apply(self.flows, base, flow_weights)
            # A chain that continued past the end of its row could grow without bound.
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
        return loc + scale * eps, loc, inverse_softplus(scale)

    def _conditional(self, z_prev: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of q(z_t | z_{t-1}, x) for any number of steps, before any flow."""
        h = h.expand(*z_prev.shape[:-1], -1)
        if isinstance(self.combiner, CombinerWeights):
            loc, scale = ops.combiner(z_prev, h, self.combiner)
        else:
            loc, scale = loc_and_scale("combiner", self.combiner(z_prev, h), z_prev.shape, z_prev.dtype)
        return loc, scale + self.min_scale if self.min_scale else scale

    def _conditional_of(self, value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self._conditional(previous(value, self.z_q_0), h)

    def _to_previous(self, draw: Draw) -> ToPrevious:
        z_prev = previous(draw.z, self.z_q_0).detach()
        if isinstance(self.combiner, CombinerWeights):
            scale = positive_softplus(draw.pre_scale.detach())
            return _path_gradient.to_previous_by_weights(z_prev, scale, self.combiner, self.min_scale)
        h = torch.where(valid(self.lengths, z_prev.shape[-2]), self.h, 0.0).detach()
        return _path_gradient.to_previous_by_network(z_prev, lambda given: self._conditional(given, h))

    def _log_prob_of_any(self, value: Tensor) -> Tensor:
        if isinstance(self.combiner, CombinerWeights) and not self.flows and not self.min_scale:
            return ops.combiner_log_prob(value, self.h, self.z_q_0, self.combiner, self.lengths)
        return super()._log_prob_of_any(value)


class MeanFieldPosterior(DrawnPosterior):
    """q(z_{1:T} | x_{1:T}) = prod_t q(z_t | h_t) over ``[T, Z]``: the steps are independent.

    Args:
        h: ``[B, T, H]``, the output of the inference network.
        combiner: the weights of the two heads; or a network that maps ``h_t [..., H]`` to ``loc, scale`` of
            q(z_t | x), each ``[..., Z]``.
        Z: number of latents of a step.
        lengths: int64 ``[B]``.
        flows: as for :class:`MarkovPosterior`.
        min_scale: added to every scale, before any flow.
        path_gradient: as for :class:`MarkovPosterior`; a network is not evaluated again.

    Source: arXiv 1609.09869, section 4 (MF-L and MF-LR of its table 1).
    """

    def __init__(
        self,
        h: Tensor,
        combiner: MeanFieldWeights | Network,
        Z: int,
        lengths: Tensor,
        flows: Sequence[Any] = (),
        min_scale: float = 0.0,
        path_gradient: bool = False,
    ) -> None:
        B, T, H = check.sequences("h", h)
        check.lengths(lengths, B, T, h.device)
        check.size("Z", Z)
        if isinstance(combiner, MeanFieldWeights):
            words = ("ZH", "Z", "ZH", "Z")
            check.weights("combiner", combiner, MeanFieldWeights, words, h, "h", {"H": H, "Z": Z})
        else:
            check_network("combiner", combiner, "h_t")
        self.combiner, self._is_checked = combiner, not autocast_is_on()
        super().__init__(h, Z, lengths, flows, min_scale, path_gradient)

    @property
    def mean(self) -> Tensor:
        """The means ``[..., B, T, Z]``, zero past the end of each row; not available with flows."""
        return super().mean if self.flows else self._heads()[0].expand(self._shape_of(()))

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, Z]``, zero past the end of each row; not available with flows."""
        if self.flows:
            return super().variance
        variance = torch.where(self._keep, F.softplus(self._heads()[1]).square(), 0.0)
        return variance.expand(self._shape_of(()))

    @property
    def _keep(self) -> Tensor:
        return valid(self.lengths, self.event_shape[0])

    def _heads(self) -> tuple[Tensor, Tensor]:
        """``loc, pre_scale`` of all steps before any flow, zero past the end of each row."""
        if isinstance(self.combiner, MeanFieldWeights):
            w = self.combiner
            weight, bias = torch.cat([w.w_loc, w.w_scale]), torch.cat([w.b_loc, w.b_scale])
            heads = ops.input_projection(self.h, weight, bias, self.lengths)
            loc, pre_scale = heads.chunk(2, dim=-1)
            return loc, torch.where(self._keep, self._raised(pre_scale), 0.0) if self.min_scale else pre_scale
        loc, scale = self._conditional_of(self.h, torch.where(self._keep, self.h, 0.0))
        return torch.where(self._keep, loc, 0.0), torch.where(self._keep, inverse_softplus(scale), 0.0)

    def _draw_from(self, eps: Tensor) -> Draw:
        keep = self._keep
        loc, pre_scale = (each.expand_as(eps) for each in self._heads())
        z, log_det = torch.where(keep, loc + F.softplus(pre_scale) * eps, 0.0), None
        if self.flows:
            z, log_det = _flows.apply(self.flows, z, _flows.weights_if_any(self.flows))
            z, log_det = torch.where(keep, z, 0.0), torch.where(keep.squeeze(-1), log_det, 0.0).sum(-1)
        return Draw(z, eps, loc, pre_scale, log_det)

    def _conditional_of(self, value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.combiner, MeanFieldWeights):
            loc, scale = mean_field(h, self.combiner)
        else:
            shape = (*h.shape[:-1], self.event_shape[-1])
            loc, scale = loc_and_scale("combiner", self.combiner(h), shape, h.dtype)
        return loc, scale + self.min_scale if self.min_scale else scale
