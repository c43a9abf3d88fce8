"""An emission defined by a user's module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from dmm_fast import check
from dmm_fast.distributions._emission import _Emission
from dmm_fast.distributions._sequence import valid
from dmm_fast.reference import observed


class ModuleEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) by a module with ``log_prob(x, z)`` and ``sample(z)``, over ``[T, D]``.

    For ``x [B, T, D]`` and ``z [..., B, T, Z]``, ``log_prob`` returns log p(x_t | z_t) in nats, either
    ``[..., B, T]`` or, if features are independent given z_t, ``[..., B, T, D]``, which allows single entries
    to be missing. In the first case a mask ``[B, T, D]`` has to mask whole steps; on a GPU, where this is not
    checked, a step with any missing entry is dropped.
    ``sample(z)`` returns ``[..., B, T, D]``, and so does ``mean(z)``, which is optional. The module is called
    once for all steps. Its inputs are 0 where x is missing and past the end of a row; its outputs there are
    dropped but have to be finite, or gradients would be NaN.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the module.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``.
    """

    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        z: Tensor,
        emitter: nn.Module,
        lengths: Tensor,
        mask: Tensor | None = None,
        output_dim: int | None = None,
    ) -> None:
        self.emitter: Any = emitter
        for name, given in (("log_prob", ("x", "z")), ("sample", ("z",))):
            method: Any = getattr(emitter, name, None)
            check.function(f"emitter.{name}", method)
            check.takes(f"emitter.{name}", method, given, {}, f"a function of {' and '.join(given)}")
        super().__init__(z, check.size("output_dim", output_dim), lengths, mask)
        self._z = torch.where(valid(lengths, z.shape[-2]), z, 0.0)

    @property
    def mean(self) -> Tensor:
        """The module's ``mean(z)``, ``[..., B, T, D]``, zero past the end of each row."""
        if not callable(getattr(self.emitter, "mean", None)):
            name = type(self.emitter).__name__
            raise NotImplementedError(f"mean: {name} has no method mean(z); average draws instead")
        return self._finish(self._shaped("mean", self.emitter.mean(self._z), self._output_shape))

    @property
    def variance(self) -> Tensor:
        """The variance, which is not available for a module."""
        name = type(self.emitter).__name__
        raise NotImplementedError(f"variance: that of {name} is not known; estimate it from draws instead")

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        shape = self._shape_of(sample_shape)
        with torch.no_grad():
            z = self._z.expand(*shape[:-2], *self._z.shape[-2:])
            return self._finish(self._shaped("sample", self.emitter.sample(z), shape))

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z)
        check.like("value", value, self.z, "the distribution")
        T, D = self.event_shape
        keep = observed(self.lengths, T, self.mask_)
        value = torch.where(keep, value, 0.0)
        lead = torch.broadcast_shapes(value.shape[:-2], self._z.shape[:-2])
        terms = check.floating("emitter.log_prob", self.emitter.log_prob(value, self._z))
        if terms.shape == (*lead, T):
            whole = keep.all(-1, keepdim=True)
            if check.values_are_readable(keep) and not torch.equal(whole, keep.any(-1, keepdim=True)):
                expected = "whole steps, since emission.log_prob returns one number per step, not per feature"
                check.fail("mask", expected, "a step with some of its features")
            keep, terms = whole, terms.unsqueeze(-1)
        else:
            terms = self._shaped("log_prob", terms, torch.Size((*lead, T, D)))
        return self._spread(torch.where(keep, terms, 0.0).sum((-2, -1)))

    @staticmethod
    def _shaped(method: str, output: object, shape: torch.Size) -> Tensor:
        tensor = check.floating(f"emitter.{method}", output)
        check.shape(f"emitter.{method}", tensor, shape)
        return tensor
