"""The prior chain of the latents."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from dmm_fast import check, ops
from dmm_fast.distributions._sequence import (
    Network,
    SequenceDistribution,
    check_network,
    loc_and_scale,
    standard_noise,
    valid,
)
from dmm_fast.ops import TransitionWeights
from dmm_fast.ops._checks import check_arguments
from dmm_fast.ops._derivatives import may_be_recorded
from dmm_fast.reference import previous


class MarkovPrior(SequenceDistribution):
    """p(z_{1:T}) = prod_t N(z_t; transition(z_{t-1})) over ``[T, Z]``.

    Args:
        z_0: ``[Z]``, the initial state before z_1.
        transition: the weights of a gated transition; or a network that maps ``z_{t-1} [..., Z]`` to
            ``loc, scale`` of p(z_t | z_{t-1}), each ``[..., Z]``.
        lengths: int64 ``[B]``.
        T: number of steps of the padded batch.
        inputs: ``[B, T, X]``, further inputs of each step, such as past data and controls: the transition
            then reads ``[z_{t-1}, inputs_t]``, and the distribution is conditional on them.

    Source: arXiv 1609.09869, section 3.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        z_0: Tensor,
        transition: TransitionWeights | Network,
        lengths: Tensor,
        T: int,
        inputs: Tensor | None = None,
    ) -> None:
        check.trailing("z_0", check.floating("z_0", z_0), (-1,), "[Z]")
        check.size("T", T)
        self.z_0, self.transition = z_0, transition
        check.vector("lengths", lengths)
        check.lengths(lengths, lengths.shape[0], T, z_0.device)
        check.broadcastable("z_0", z_0, (len(lengths), z_0.shape[-1]), "[B, Z]")
        self.inputs = inputs
        if inputs is not None:
            check.trailing("inputs", check.floating("inputs", inputs), (len(lengths), T, -1), "[B, T, X]")
            check.like("inputs", inputs, z_0, "z_0")
        if isinstance(transition, TransitionWeights):
            Z, X = z_0.shape[-1], 0 if inputs is None else inputs.shape[-1]
            self._check_weights("transition", "driven_transition", transition, z_0, "z_0", Z=Z, I=Z + X)
        else:
            check_network("transition", transition, "z_{t-1}")
        super().__init__(lengths.shape, torch.Size((T, z_0.shape[-1])), lengths)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]``, one step of the chain after another.

        If the transition is given as weights and autograd does not record, one op draws the whole chain.
        """
        eps = standard_noise(self._shape_of(sample_shape), self.z_0)
        if isinstance(self.transition, TransitionWeights):
            B, T = eps.shape[-3:-1]
            inputs = eps.new_empty(B, T, 0) if self.inputs is None else self.inputs
            if not may_be_recorded((self.z_0, inputs, self.transition)):
                given = (eps, self.z_0, inputs, self.transition, self.lengths)
                z: Tensor = self._compute("transition_scan", *given)
                return z
        z_t = self.z_0.expand_as(eps[..., 0, :])
        steps = []
        given_steps = [None] * eps.shape[-2] if self.inputs is None else self.inputs.unbind(-2)
        for eps_t, inputs_t in zip(eps.unbind(-2), given_steps, strict=True):
            loc, scale = self._conditional(z_t, inputs_t)
            z_t = loc + scale * eps_t
            steps.append(z_t)
        return torch.where(valid(self.lengths, len(steps)), torch.stack(steps, dim=-2), 0.0)

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z_0)
        if self.inputs is None and isinstance(self.transition, TransitionWeights):
            given = (value, self.z_0, self.transition, self.lengths)
            log_prob: Tensor = self._compute("transition_log_prob", *given, gradient=gradient)
        else:
            value = torch.where(valid(self.lengths, value.shape[-2]), value, 0.0)
            log_prob = ops.normal_log_prob(value, *self._given(value), self.lengths)
        return self._spread(log_prob)

    def kl_from(self, z: Tensor, loc: Tensor, pre_scale: Tensor) -> Tensor:
        """``[..., B]``: the KL to each step's prior given ``z``, summed over valid steps, in nats.

        Args:
            z: ``[..., B, T, Z]``, a draw.
            loc: location of the distribution that each step was drawn from, of the shape of ``z``.
            pre_scale: its scale before softplus, of the same shape.
        """
        return self._kl_from(z, loc, pre_scale)

    def _kl_from(self, z: Tensor, loc: Tensor, pre_scale: Tensor, gradient: Tensor | None = None) -> Tensor:
        if self.inputs is None and isinstance(self.transition, TransitionWeights):
            given = (z, loc, pre_scale, self.z_0, self.transition, self.lengths)
            if gradient is None:
                return ops.transition_kl(*given)
            check_arguments("transition_kl", given)
            kl: Tensor = self._compute("transition_kl", *given, gradient=gradient)
            return kl
        keep = valid(self.lengths, z.shape[-2])
        prior_loc, prior_scale = self._given(torch.where(keep, z, 0.0))
        q = Normal(loc, torch.where(keep, F.softplus(pre_scale), 1.0), validate_args=False)
        p = Normal(prior_loc, torch.where(keep, prior_scale, 1.0), validate_args=False)
        return torch.where(keep, kl_divergence(q, p), 0.0).sum((-2, -1))

    def _given(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of each step given ``z [..., B, T, Z]``."""
        return self._conditional(previous(z, self.z_0), self.inputs)

    def _conditional(self, z_prev: Tensor, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        given = z_prev
        if inputs is not None:
            given = torch.cat([z_prev, inputs.expand(*z_prev.shape[:-1], -1)], dim=-1)
        if isinstance(self.transition, TransitionWeights):
            loc, scale = self._compute("gated_transition", given, self.transition)
            return loc, scale
        return loc_and_scale("trans", self.transition(given), z_prev.shape, z_prev.dtype)
