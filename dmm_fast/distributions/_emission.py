"""The emissions: distributions of the data given the latents."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import probs_to_logits

from dmm_fast import check, ops
from dmm_fast.distributions._sequence import (
    Network,
    SequenceDistribution,
    check_network,
    checked_min_scale,
    checked_output,
    loc_and_scale,
    standard_noise,
    valid,
)
from dmm_fast.ops import EmitterWeights, GaussianEmitterWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import observed


class Units(NamedTuple):
    """Units of real-valued data, each ``[D]``: ``x = loc + scale * y`` for the network's output ``y``."""

    loc: Tensor
    scale: Tensor


class _Emission(SequenceDistribution):
    def __init__(self, z: Tensor, output_dim: int, lengths: Tensor, mask: Tensor | None = None) -> None:
        B, T, _ = check.sequences("z", z)
        check.lengths(lengths, B, T, z.device)
        if mask is not None:
            check.observation_mask("mask", mask, (B, T, output_dim), z.device)
        self.z, self.mask_ = z, mask
        super().__init__(z.shape[:-2], torch.Size((T, output_dim)), lengths)

    def _features(self, kind: str, emitter: tuple[Tensor, ...], z: Tensor) -> int:
        """Check the weights of an emitter, and return the number of its output features."""
        self._check_weights("emitter", kind, emitter, z, "z", Z=check.sequences("z", z)[-1])
        return emitter[5].shape[0]  # the bias of the first head

    @property
    def _output_shape(self) -> torch.Size:
        return self.z.shape[:-1] + self.event_shape[-1:]

    def _finish(self, draw: Tensor) -> Tensor:
        return torch.where(valid(self.lengths, self.event_shape[0]), draw, 0.0)

    @staticmethod
    def _drawable(parameter: Tensor, name: str) -> Tensor:
        """Check that a parameter to draw with is not NaN, and return it."""
        if check.values_are_readable(parameter) and bool(parameter.isnan().any()):
            check.fail("z", f"latents with a {name} by the emitter", f"NaN as a {name}")
        return parameter


class ParameterEmission(_Emission):
    """An emission whose parameters are computed by an op from an emitter's weights, or by a network.

    A subclass names the op and its weights, and computes the same log-density from a network's output.
    """

    _WEIGHTS: ClassVar[type[Any]]
    _KIND: ClassVar[str]  # the kind of weights in the table of ops
    _OP: ClassVar[str]

    def __init__(
        self,
        z: Tensor,
        emitter: Any,
        lengths: Tensor,
        mask: Tensor | None = None,
        output_dim: int | None = None,
    ) -> None:
        self.emitter: Any = emitter
        is_weights = isinstance(emitter, self._WEIGHTS)
        if is_weights:
            output_dim = self._features(self._KIND, emitter, z)
        super().__init__(z, check.size("output_dim", output_dim), lengths, mask)
        self._output: tuple[Tensor, ...] | None = None
        if not is_weights:
            check_network("emitter", emitter, "z_t")
            self._output = self._checked(emitter(z))

    def _checked(self, output: object) -> tuple[Tensor, ...]:
        """The parameters returned by a network, each checked and expanded to the output's shape."""
        raise NotImplementedError

    def _log_prob_of_output(self, value: Tensor, keep: Tensor, *output: Tensor) -> Tensor:
        """``[..., B]`` from the network's output; ``value`` is zero at unobserved entries."""
        raise NotImplementedError

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z)
        if self._output is None:
            given = (value, self.z, self.emitter, self.lengths, self.mask_)
            return self._spread(self._compute(self._OP, *given, gradient=gradient))
        if not autocast_is_on():
            check.like("value", value, self.z, "the distribution")
        keep = observed(self.lengths, self.event_shape[0], self.mask_)
        return self._spread(self._log_prob_of_output(torch.where(keep, value, 0.0), keep, *self._output))


def tempered(u: Tensor, temperature: float) -> Tensor:
    """Uniform numbers whose comparison with a probability divides its logit by the temperature.

    sigmoid(temperature logit(u)) < sigmoid(a) if and only if u < sigmoid(a / temperature).
    """
    return u if temperature == 1 else torch.sigmoid(temperature * torch.logit(u))


def probabilities(output: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The probabilities returned by a network, expanded to ``shape``.

    Raises:
        ValueError: they do not broadcast to ``shape``, or are not between 0 and 1.
        TypeError: they are not a floating-point tensor.
    """
    probs = checked_output("emitter", output, shape, dtype)
    if check.values_are_readable(probs):
        outside = probs[~((probs >= 0) & (probs <= 1))]
        if outside.numel():
            check.fail("emitter", "probabilities between 0 and 1", str(outside[0].item()))
    return probs


class BernoulliEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) = prod_t Bernoulli(x_t; emitter(z_t)) over ``[T, D]``.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of an emitter; or a network that maps ``z_t [..., Z]`` to probabilities
            ``[..., D]``.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.

    Source: arXiv 1609.09869, section 3.
    """

    support = constraints.independent(constraints.boolean, 2)
    temperature = 1.0
    """Divides the logits of draws; densities and the mean are those of temperature 1."""

    def __init__(
        self,
        z: Tensor,
        emitter: EmitterWeights | Network,
        lengths: Tensor,
        mask: Tensor | None = None,
        output_dim: int | None = None,
    ) -> None:
        self.emitter: Any = emitter
        if isinstance(emitter, EmitterWeights):
            output_dim = self._features("emitter", emitter, z)
        super().__init__(z, check.size("output_dim", output_dim), lengths, mask)
        # Computed here and not with the density, since sample statements in the network belong to the model.
        self._probs = None if isinstance(emitter, EmitterWeights) else self._compute_probs(emitter)

    @property
    def mean(self) -> Tensor:
        """The probabilities ``[..., B, T, D]``, zero past the end of each row."""
        if self._probs is not None:
            return self._finish(self._probs)
        return self._finish(torch.sigmoid(self._compute("emitter", self.z, self.emitter)))

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, D]``, zero past the end of each row."""
        mean = self.mean
        return mean * (1 - mean)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        with torch.no_grad():
            shape, mean = self._shape_of(sample_shape), self._drawable(self.mean, "probability")
            # torch.bernoulli takes twice as long on a CPU.
            wide = torch.promote_types(mean.dtype, torch.float32)
            u = torch.rand(shape, dtype=wide, device=mean.device)
            return (tempered(u, self.temperature) < mean).to(mean.dtype)

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z)
        if self._probs is not None:
            logits = probs_to_logits(self._probs, is_binary=True)
            log_prob = self._compute("bernoulli_log_prob", value, logits, self.lengths, self.mask_)
        else:
            given = (value, self.z, self.emitter, self.lengths, self.mask_)
            log_prob = self._compute("emission_log_prob", *given, gradient=gradient)
        return self._spread(log_prob)

    def _compute_probs(self, emitter: Network) -> Tensor:
        check_network("emitter", emitter, "z_t")
        return probabilities(emitter(self.z), self._output_shape, self.z.dtype)


class GaussianEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) = prod_t N(x_t; gaussian_emitter(z_t)) over ``[T, D]``.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of a Gaussian emitter; or a network that maps ``z_t [..., Z]`` to ``loc, scale``,
            each ``[..., D]``.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.
        min_scale: added to every scale of the emitter.
        units: the units of the data, if the emitter's outputs are standardised.

    Source: arXiv 1609.09869, section 3.
    """

    has_rsample = True
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        z: Tensor,
        emitter: GaussianEmitterWeights | Network,
        lengths: Tensor,
        mask: Tensor | None = None,
        output_dim: int | None = None,
        min_scale: float = 0.0,
        units: Units | None = None,
    ) -> None:
        check.kind("units", units, Units, type(None))
        self.emitter: Any = emitter
        self.min_scale, self.units = checked_min_scale(min_scale), units
        if isinstance(emitter, GaussianEmitterWeights):
            output_dim = self._features("gaussian_emitter", emitter, z)
        super().__init__(z, check.size("output_dim", output_dim), lengths, mask)
        for name, unit in units._asdict().items() if units is not None else ():
            check.like(f"units.{name}", unit, z, "z")
            check.shape(f"units.{name}", unit, self.event_shape[-1:])
        self._output: tuple[Tensor, Tensor] | None = None
        if not isinstance(emitter, GaussianEmitterWeights):
            check_network("emitter", emitter, "z_t")
            self._output = loc_and_scale("emitter", emitter(z), self._output_shape, z.dtype)

    @property
    def mean(self) -> Tensor:
        """The locations ``[..., B, T, D]``, zero past the end of each row."""
        return self._finish(self._in_units(self._loc_and_scale()[0]))

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, D]``, zero past the end of each row."""
        scale = self._loc_and_scale()[1]
        return self._finish((scale if self.units is None else scale * self.units.scale).square())

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        loc, scale = self._loc_and_scale()
        eps = standard_noise(self._shape_of(sample_shape), self.z)
        return self._finish(self._in_units(loc + scale * eps))

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z)
        if self.units is not None:
            value = (value - self.units.loc) / self.units.scale
        if self._output is None and self.min_scale == 0:
            given = (value, self.z, self.emitter, self.lengths, self.mask_)
            log_prob = self._compute("gaussian_emission_log_prob", *given, gradient=gradient)
        else:
            loc, scale = self._loc_and_scale()
            log_prob = ops.normal_log_prob(value, loc, scale, self.lengths, self.mask_)
        if self.units is not None:
            keep = observed(self.lengths, self.event_shape[0], self.mask_)
            log_prob = log_prob - torch.where(keep, self.units.scale.log(), 0.0).sum((-2, -1))
        return self._spread(log_prob)

    def _in_units(self, y: Tensor) -> Tensor:
        return y if self.units is None else self.units.loc + self.units.scale * y

    def _loc_and_scale(self) -> tuple[Tensor, Tensor]:
        """``loc, scale`` of the emitter, including the minimum scale."""
        if self._output is not None:
            loc, scale = self._output
        else:
            loc, pre_scale = self._compute("gaussian_emitter", self.z, self.emitter)
            scale = F.softplus(pre_scale)
        return loc, scale + self.min_scale if self.min_scale else scale
