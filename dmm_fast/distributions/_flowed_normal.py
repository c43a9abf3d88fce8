"""A Gaussian of a single step transformed by normalizing flows."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from dmm_fast import _flows, check
from dmm_fast.distributions._sequence import refuse_moment
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import FlowWeights

_INSTEAD = "average draws, as sample((1000,)).mean(0) does"


class FlowedNormal(TorchDistribution):
    """``N(loc, scale)`` over ``[Z]``, independent in each latent, followed by flows.

    The log-density of the last draw is computed from its noise; for any other value the flows are inverted.
    The last draw is recognised by identity: do not change it in place.

    Args:
        loc: ``[..., Z]``.
        scale: a standard deviation, of the shape of ``loc``.
        flows: Pyro transforms over the last dimension.
        weights: the flows' weights, if they were gathered once for several steps.

    Source: ``TransformedDistribution`` in the guide of Pyro's ``examples/dmm.py``.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it

    def __init__(
        self, loc: Tensor, scale: Tensor, flows: Sequence[Any], weights: FlowWeights | None = None
    ) -> None:
        check.floating("loc", loc)
        check.like("scale", scale, loc, "loc")
        check.shape("scale", scale, loc.shape)
        # NaN is accepted here: the loss then shows that training has diverged.
        if check.values_are_readable(scale) and bool((scale < 0).any()):
            check.fail("scale", "numbers from 0", str(scale.min().item()))
        check.trailing("loc", loc, (-1,), "[..., Z]")
        check.kind("weights", weights, FlowWeights, type(None))
        self.flows, self.weights = _flows.checked(flows, loc.shape[-1]), weights
        self._normal = Normal(loc, scale, validate_args=False).to_event(1)
        self._draw: tuple[Tensor, Tensor, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, which has no closed form."""
        refuse_moment("mean", self, _INSTEAD)

    @property
    def variance(self) -> Tensor:
        """The variance, which has no closed form."""
        refuse_moment("variance", self, _INSTEAD)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with another ``batch_shape`` that its own broadcasts to.

        Raises:
            ValueError: ``batch_shape`` does not broadcast from the present one.
        """
        batch_shape = check.sizes("batch_shape", batch_shape)
        check.kind("_instance", _instance, FlowedNormal, type(None))
        own = self.batch_shape
        pairs = zip(reversed(own), reversed(batch_shape), strict=False)
        if len(batch_shape) < len(own) or any(have not in (1, want) for have, want in pairs):
            check.fail("batch_shape", f"one that {tuple(own)} broadcasts to", f"{tuple(batch_shape)}")
        new = self._get_checked_instance(FlowedNormal, _instance)
        new.__dict__.update(self.__dict__)
        new._draw, new._batch_shape = None, batch_shape
        new._normal = self._normal.expand(batch_shape)
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., Z]`` that carries no gradient."""
        with torch.no_grad():
            z = self.rsample(sample_shape)
        # The log-density must still have gradients, so it is computed as for any given value.
        self._draw = None
        return z

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., Z]``."""
        base = self._normal.rsample(check.sizes("sample_shape", sample_shape))
        weights = _flows.weights_if_any(self.flows) if self.weights is None else self.weights
        z, log_det = _flows.apply(self.flows, base, weights)
        self._draw = z, base, log_det
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """``[...]``, in nats, of ``value [..., Z]``."""
        if self._draw is not None and value is self._draw[0]:
            _, base, log_det = self._draw
        else:
            value = check.floating("value", value)
            check.trailing("value", value, self.event_shape, "[..., Z]")
            check.leading("value", value, self.batch_shape, 1, "the distribution")
            if not autocast_is_on():
                check.like("value", value, self._normal.mean, "the distribution")
            base, log_det = _flows.invert(self.flows, value)
        log_prob: Tensor = self._normal.log_prob(base) - log_det
        return log_prob
