"""A distribution over a single step, made of one over sequences of length one."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from dmm_fast import check
from dmm_fast.distributions._sequence import SequenceDistribution


class SingleStep(TorchDistribution):
    """The single step of ``sequence``, of event shape ``[1, D]``, as a distribution of event shape ``[D]``.

    Args:
        sequence: a distribution of batch shape ``[..., B]``.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it

    def __init__(self, sequence: SequenceDistribution) -> None:
        check.kind("sequence", sequence, SequenceDistribution)
        T, D = sequence.event_shape
        if T != 1:
            check.fail("sequence", "a distribution over one step", f"one over {T}")
        self.sequence = sequence
        super().__init__(sequence.batch_shape, torch.Size((D,)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """True if draws are differentiable."""
        return bool(self.sequence.has_rsample)

    @constraints.dependent_property
    def support(self) -> Any:
        """The support of the step."""
        support: Any = self.sequence.support
        return constraints.independent(support.base_constraint, 1)

    @property
    def mean(self) -> Tensor:
        """The mean ``[..., B, D]``."""
        return self.sequence.mean.squeeze(-2)

    @property
    def variance(self) -> Tensor:
        """The variance ``[..., B, D]``."""
        return self.sequence.variance.squeeze(-2)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, D]``."""
        return self.sequence.sample(torch.Size(sample_shape)).squeeze(-2)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A differentiable draw, if the sequence distribution has one."""
        return self.sequence.rsample(torch.Size(sample_shape)).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        check.trailing("value", value, (self.batch_shape[-1], self.event_shape[-1]), "[..., B, D]")
        return self.sequence.log_prob(value.unsqueeze(-2))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with more dimensions on the left of ``batch_shape``."""
        return type(self)(self.sequence.expand(check.sizes("batch_shape", batch_shape)))
