"""The emissions of counts: Poisson, and negative binomial for a larger variance."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from dmm_fast.distributions._emission import ParameterEmission
from dmm_fast.distributions._sequence import checked_between, checked_output, checked_pair
from dmm_fast.ops import EmitterWeights, GaussianEmitterWeights
from dmm_fast.reference import negative_binomial_log_density, poisson_log_density, sum_steps


class PoissonEmission(ParameterEmission):
    """p(x_{1:T} | z_{1:T}) = prod_t Poisson(x_t; rate(z_t)) over ``[T, D]``.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of an emitter, the softplus of whose output is the rate; or a network that maps
            ``z_t [..., Z]`` to rates ``[..., D]``.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.
    """

    support = constraints.independent(constraints.nonnegative_integer, 2)
    _WEIGHTS: ClassVar = EmitterWeights
    _KIND: ClassVar = "emitter"
    _OP: ClassVar = "poisson_emission_log_prob"

    @property
    def mean(self) -> Tensor:
        """The rates ``[..., B, T, D]``, zero past the end of each row."""
        if self._output is not None:
            return self._finish(*self._output)
        return self._finish(F.softplus(self._compute("emitter", self.z, self.emitter)))

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, D]``, equal to the rates, zero past the end of each row."""
        return self.mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        with torch.no_grad():
            shape, rate = self._shape_of(sample_shape), self._drawable(self.mean, "rate")
            return torch.poisson(rate.expand(shape))

    def _checked(self, output: object) -> tuple[Tensor]:
        rate = checked_output("emitter", output, self._output_shape, self.z.dtype)
        return (checked_between("emitter", rate),)

    def _log_prob_of_output(self, value: Tensor, keep: Tensor, *output: Tensor) -> Tensor:
        rate = torch.where(keep, output[0], 1.0)
        return sum_steps(poisson_log_density(value, rate, _log(rate)), keep)


class NegativeBinomialEmission(ParameterEmission):
    """p(x_{1:T} | z_{1:T}) = prod_t NB(x_t; mean(z_t), total_count(z_t)) over ``[T, D]``.

    With mean ``m`` and total count ``r`` the variance is ``m + m^2 / r``. In the parameters of
    :class:`torch.distributions.NegativeBinomial` this is a total count of ``r`` and
    ``probs = m / (r + m)``.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of an emitter of two heads, the softplus of whose outputs are the mean and the
            total count; or a network that maps ``z_t [..., Z]`` to ``mean, total_count``, each ``[..., D]``.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.
    """

    support = constraints.independent(constraints.nonnegative_integer, 2)
    _WEIGHTS: ClassVar = GaussianEmitterWeights
    _KIND: ClassVar = "gaussian_emitter"
    _OP: ClassVar = "negative_binomial_emission_log_prob"

    @property
    def mean(self) -> Tensor:
        """The means ``[..., B, T, D]``, zero past the end of each row."""
        return self._finish(self._mean_and_count()[0])

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, D]``, zero past the end of each row."""
        mean, total_count = self._mean_and_count()
        return self._finish(mean + mean.square() / total_count)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        with torch.no_grad():
            shape = self._shape_of(sample_shape)
            mean, total_count = map(self._finish, self._mean_and_count())
            mean = self._drawable(mean, "mean").expand(shape)
            total_count = _off_zero(self._drawable(total_count, "total count")).expand(shape)
            # A Poisson whose rate is drawn from a gamma distribution.
            gamma = torch._standard_gamma(total_count)
            return torch.poisson(torch.where(gamma > 0, gamma * (mean / total_count), 0.0))

    def _mean_and_count(self) -> tuple[Tensor, Tensor]:
        if self._output is not None:
            mean, total_count = self._output
            return mean, total_count
        pre_mean, pre_count = self._compute("gaussian_emitter", self.z, self.emitter)
        return F.softplus(pre_mean), F.softplus(pre_count)

    def _checked(self, output: object) -> tuple[Tensor, Tensor]:
        parts = ("mean", "total_count")
        mean, total_count = checked_pair("emitter", output, parts, self._output_shape, self.z.dtype)
        return checked_between("mean of emitter", mean), checked_between(
            "total_count of emitter", total_count
        )

    def _log_prob_of_output(self, value: Tensor, keep: Tensor, *output: Tensor) -> Tensor:
        mean, total_count = (_off_zero(torch.where(keep, each, 1.0)) for each in output)
        terms = negative_binomial_log_density(value, total_count, total_count.log(), mean.log())
        return sum_steps(terms, keep)


def _off_zero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _log(x: Tensor) -> Tensor:
    return _off_zero(x).log()
