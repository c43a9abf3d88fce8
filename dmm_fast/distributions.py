"""Sequence-level Pyro distributions of a Deep Markov Model.

Each is one distribution over a whole sequence: batch shape ``[..., B]`` and event shape ``[T, Z]`` or
``[T, D]``, time leftmost as in :class:`pyro.distributions.GaussianHMM`. Raggedness lives inside: what
lies past ``lengths`` is zero in a draw and absent from the log-density, which is in nats.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from typing_extensions import Self

from dmm_fast import check, ops
from dmm_fast.ops import (
    CombinerWeights,
    EmitterWeights,
    GaussianEmitterWeights,
    TransitionWeights,
)


def _valid(lengths: Tensor, T: int) -> Tensor:
    """``[B, T, 1]`` bool: the steps within each row."""
    steps = torch.arange(T, device=lengths.device)
    return (steps < lengths.unsqueeze(-1)).unsqueeze(-1)


def standard_noise(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard normal noise ``[..., B, T, Z]``, drawn step after step on a CPU.

    The steps of a per-step model draw ``[..., B, Z]`` in turn; drawing in the same order gives the
    same noise for the same seed. A GPU draws all of it at once: there the order is another.
    """
    *batch, T, Z = shape
    eps = like.new_empty((T, *batch, Z))
    for step in eps if like.device.type == "cpu" else (eps,):
        step.normal_()
    return eps.movedim(0, -2)


class SequenceDistribution(TorchDistribution):
    """What the distributions here share: shapes, expansion and a time mask by ``lengths``."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch declares it so

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, lengths: Tensor) -> None:
        self.lengths = lengths
        super().__init__(batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with more dimensions on the left of ``batch_shape``; nothing is copied.

        Raises:
            ValueError: ``batch_shape`` does not broadcast from the present one.
        """
        batch_shape = torch.Size(batch_shape)
        # B stays as it is: a row is not one of several alike, it has its own length.
        own = self.batch_shape
        lead = batch_shape[len(batch_shape) - len(own) : -1]
        if (
            len(batch_shape) < len(own)
            or batch_shape[-1] != own[-1]
            or any(have not in (1, want) for have, want in zip(own[:-1], lead, strict=True))
        ):
            check.fail(
                "batch_shape", f"one that {tuple(own)} expands to on the left", f"{tuple(batch_shape)}"
            )
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def _check_value(self, value: Tensor) -> None:
        B = self.lengths.shape[0]
        check.trailing("value", value, (B, *self.event_shape), "[..., B, T, *]")

    def _spread(self, log_prob: Tensor) -> Tensor:
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


class MarkovPrior(SequenceDistribution):
    """p(z_{1:T}) = prod_t N(z_t; gated_transition(z_{t-1})) over ``[T, Z]``.

    Args:
        z_0: ``[Z]``, what precedes z_1.
        weights: of the gated transition.
        lengths: int64 ``[B]``.
        T: steps of the padded batch.

    Source: arXiv 1609.09869, section 3.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(self, z_0: Tensor, weights: TransitionWeights, lengths: Tensor, T: int) -> None:
        self.z_0, self.weights = z_0, weights
        check.vector("lengths", lengths)
        check.lengths(lengths, lengths.shape[0], T, z_0.device)
        super().__init__(lengths.shape, torch.Size((T, z_0.shape[-1])), lengths)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, Z]``, one step of the chain after another."""
        eps = standard_noise(self._extended_shape(torch.Size(sample_shape)), self.z_0)
        z_t = self.z_0.expand_as(eps[..., 0, :])
        steps = []
        for eps_t in eps.unbind(-2):
            loc, scale = ops.gated_transition(z_t, self.weights)
            z_t = loc + scale * eps_t
            steps.append(z_t)
        return torch.where(_valid(self.lengths, len(steps)), torch.stack(steps, dim=-2), 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        self._check_value(value)
        return self._spread(ops.transition_log_prob(value, self.z_0, self.weights, self.lengths))


class _Draw(NamedTuple):
    """A draw of the posterior and what its log-density is made of."""

    z: Tensor
    eps: Tensor
    loc: Tensor
    pre_scale: Tensor
    log_det: Tensor | None  # [..., B], summed over valid steps; None without flows


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
        weights: of the combiner.
        lengths: int64 ``[B]``.
        flows: Pyro transforms, each applied to z_t at every step (normalizing flows).

    Source: arXiv 1609.09869, section 4 (structured inference, DKS).
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        h: Tensor,
        z_q_0: Tensor,
        weights: CombinerWeights,
        lengths: Tensor,
        flows: Sequence[Any] = (),
    ) -> None:
        B, T, _ = check.sequences("h", h)
        check.lengths(lengths, B, T, h.device)
        self.h, self.z_q_0, self.weights, self.flows = h, z_q_0, weights, tuple(flows)
        self._draw: _Draw | None = None
        super().__init__(h.shape[:-2], torch.Size((T, z_q_0.shape[-1])), lengths)

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
        eps = standard_noise(self._extended_shape(torch.Size(sample_shape)), self.h)
        if self.flows:
            self._draw = self._scan_with_flows(eps)
        else:
            z, loc, pre_scale = ops.combiner_scan(self.h, eps, self.z_q_0, self.weights, self.lengths)
            self._draw = _Draw(z, eps, loc, pre_scale, None)
        return self._draw.z

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        self._check_value(value)
        draw = self._draw
        if draw is None or value is not draw.z:
            return self._spread(self._log_prob_of_any(value))
        log_prob = ops.drawn_log_prob(draw.eps, draw.pre_scale, self.lengths)
        return log_prob if draw.log_det is None else log_prob - draw.log_det

    def kl_to(self, prior: MarkovPrior) -> Tensor:
        """``[..., B]``: the analytic KL of each step at the last draw, summed; see :func:`register_kl`."""
        if self.flows:
            raise NotImplementedError("kl_divergence: a posterior with flows has no analytic KL")
        if self._draw is None:
            check.fail("posterior", "a draw before its KL is taken", "none", RuntimeError)
        z, _, loc, pre_scale, _ = self._draw
        return ops.transition_kl(z, loc, pre_scale, prior.z_0, prior.weights, self.lengths)

    def _scan_with_flows(self, eps: Tensor) -> _Draw:
        """The scan with every z_t sent through the flows before the next step reads it."""
        valid = _valid(self.lengths, eps.shape[-2])
        z_t = self.z_q_0
        steps = []
        for t in range(eps.shape[-2]):
            now = slice(t, t + 1)
            base, loc, pre_scale = ops.combiner_scan(
                self.h[..., now, :],
                eps[..., now, :],
                z_t,
                self.weights,
                torch.ones_like(self.lengths),
            )
            flowed, log_det = base, torch.zeros_like(base[..., 0])
            for flow in self.flows:
                before, flowed = flowed, flow(flowed)
                log_det = log_det + flow.log_abs_det_jacobian(before, flowed)
            z_t = flowed.squeeze(-2)
            steps.append((flowed, loc, pre_scale, log_det.unsqueeze(-1)))
        z, loc, pre_scale, log_det = (
            torch.where(valid, torch.cat(s, dim=-2), 0.0) for s in zip(*steps, strict=True)
        )
        return _Draw(z, eps, loc, pre_scale, log_det.sum((-2, -1)))

    def _log_prob_of_any(self, value: Tensor) -> Tensor:
        if not self.flows:
            return ops.combiner_log_prob(value, self.h, self.z_q_0, self.weights, self.lengths)
        valid = _valid(self.lengths, value.shape[-2])
        value = torch.where(valid, value, 0.0)
        first = self.z_q_0.expand_as(value[..., :1, :])
        loc, scale = ops.combiner(torch.cat([first, value[..., :-1, :]], dim=-2), self.h, self.weights)
        base, log_det = value, torch.zeros_like(value[..., 0])
        for flow in reversed(self.flows):
            after, base = base, flow.inv(base)
            log_det = log_det + flow.log_abs_det_jacobian(base, after)
        log_det = torch.where(valid.squeeze(-1), log_det, 0.0).sum(-1)
        return ops.normal_log_prob(base, loc, scale, self.lengths) - log_det


@register_kl(MarkovPosterior, MarkovPrior)
def _kl_posterior_prior(q: MarkovPosterior, p: MarkovPrior) -> Tensor:
    """Sum of the steps' analytic KL at the last draw: unbiased for KL(q || p), and less noisy."""
    return q._spread(q.kl_to(p))


class _Emission(SequenceDistribution):
    def __init__(self, z: Tensor, output_dim: int, lengths: Tensor, mask: Tensor | None = None) -> None:
        B, T, _ = check.sequences("z", z)
        check.lengths(lengths, B, T, z.device)
        self.z, self.mask_ = z, mask
        super().__init__(z.shape[:-2], torch.Size((T, output_dim)), lengths)

    def _finish(self, draw: Tensor) -> Tensor:
        return torch.where(_valid(self.lengths, self.event_shape[0]), draw, 0.0)


class BernoulliEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) = prod_t Bernoulli(x_t; emitter(z_t)) over ``[T, D]``.

    Args:
        z: ``[..., B, T, Z]``.
        weights: of the emitter.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``: what is observed. A draw is not masked by it.

    Source: arXiv 1609.09869, section 3.
    """

    support = constraints.independent(constraints.boolean, 2)

    def __init__(
        self, z: Tensor, weights: EmitterWeights, lengths: Tensor, mask: Tensor | None = None
    ) -> None:
        self.weights = weights
        super().__init__(z, weights.b_out.shape[0], lengths, mask)

    @property
    def mean(self) -> Tensor:
        """The probabilities ``[..., B, T, D]``, zero past the end of each row."""
        return self._finish(torch.sigmoid(ops.emitter(self.z, self.weights)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return torch.bernoulli(self.mean.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        self._check_value(value)
        return self._spread(ops.emission_log_prob(value, self.z, self.weights, self.lengths, self.mask_))


class GaussianEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) = prod_t N(x_t; gaussian_emitter(z_t)) over ``[T, D]``.

    Arguments are those of :class:`BernoulliEmission`.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        z: Tensor,
        weights: GaussianEmitterWeights,
        lengths: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        self.weights = weights
        super().__init__(z, weights.b_loc.shape[0], lengths, mask)

    @property
    def mean(self) -> Tensor:
        """The locations ``[..., B, T, D]``, zero past the end of each row."""
        return self._finish(ops.gaussian_emitter(self.z, self.weights)[0])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        loc, pre_scale = ops.gaussian_emitter(self.z, self.weights)
        eps = standard_noise(self._extended_shape(torch.Size(sample_shape)), self.z)
        return self._finish(loc + F.softplus(pre_scale) * eps)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        self._check_value(value)
        return self._spread(
            ops.gaussian_emission_log_prob(value, self.z, self.weights, self.lengths, self.mask_)
        )
