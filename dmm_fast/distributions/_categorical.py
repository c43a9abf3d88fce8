"""The emission of one-hot categories."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from dmm_fast import check
from dmm_fast.distributions._emission import ParameterEmission, probabilities
from dmm_fast.distributions._sequence import valid
from dmm_fast.ops import EmitterWeights
from dmm_fast.reference import categorical_log_prob

_SUM_TOLERANCE = 1e-3


class CategoricalEmission(ParameterEmission):
    """p(x_{1:T} | z_{1:T}) = prod_t Categorical(x_t; probs(z_t)) over one-hot ``[T, D]``.

    Missing entries are summed over: if all observed entries of a step are zero, its term is the
    log-probability that the category is one of the missing ones.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of an emitter of logits; or a network that maps ``z_t [..., Z]`` to probabilities
            ``[..., D]``, which sum to one.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.
    """

    # Past the end of a row a draw is zero, which is not one-hot.
    support = constraints.independent(constraints.boolean, 2)
    _WEIGHTS: ClassVar = EmitterWeights
    _KIND: ClassVar = "emitter"
    _OP: ClassVar = "categorical_emission_log_prob"

    @property
    def mean(self) -> Tensor:
        """The probabilities ``[..., B, T, D]``, zero past the end of each row."""
        if self._output is not None:
            return self._finish(*self._output)
        return self._finish(torch.softmax(self._compute("emitter", self.z, self.emitter), -1))

    @property
    def variance(self) -> Tensor:
        """The variances ``[..., B, T, D]``, zero past the end of each row."""
        mean = self.mean
        return mean * (1 - mean)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``, one-hot within each row and zero past its end."""
        with torch.no_grad():
            shape, probs = self._shape_of(sample_shape), self._drawable(self.mean, "probability")
            # Past the end any valid probabilities will do; the draw is dropped.
            probs = torch.where(self._valid, probs, 1.0).expand(shape)
            index = torch.multinomial(probs.reshape(-1, shape[-1]), 1)
            return self._finish(F.one_hot(index, shape[-1]).to(probs.dtype).reshape(shape))

    @property
    def _valid(self) -> Tensor:
        return valid(self.lengths, self.event_shape[0])

    def _checked(self, output: object) -> tuple[Tensor]:
        probs = probabilities(output, self._output_shape, self.z.dtype)
        if check.values_are_readable(probs):
            sums = probs.masked_select(self._valid).reshape(-1, probs.shape[-1]).sum(-1)
            off = sums[(sums - 1).abs() > _SUM_TOLERANCE]
            if off.numel():
                check.fail("emitter", "probabilities that add up to 1", f"a sum of {off[0].item()}")
        return (probs,)

    def _log_prob_of_output(self, value: Tensor, keep: Tensor, *output: Tensor) -> Tensor:
        probs = torch.where(self._valid, output[0], 1.0)
        log_probs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
        return categorical_log_prob(value, log_probs, self.lengths, self.mask_)
