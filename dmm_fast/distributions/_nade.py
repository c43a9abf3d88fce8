"""The emission of binary features that depend on one another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from dmm_fast import check, ops
from dmm_fast.distributions._emission import _Emission, tempered
from dmm_fast.distributions._sequence import Network, check_network, checked_output
from dmm_fast.ops import NadeEmitterWeights
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.reference import nade_emitter, nade_logits, observed


class NadeEmission(_Emission):
    """p(x_{1:T} | z_{1:T}) = prod_t NADE(x_t; emitter(z_t)) over ``[T, D]``.

    The features of a step have an order, and the probability of each depends on the preceding ones:
    ``p(x_d = 1 | x_{<d}, z) = sigmoid(b_d + w_read[d] . sigmoid(a_d))``. The logits ``b`` and the initial
    state ``a_1`` are the emitter's outputs, and ``a_{d+1} = a_d + x_d w_write[d]``.

    A missing feature has no term and leaves the state unchanged. The result is a normalised density of the
    observed features; it is their marginal if the missing features are last in the order, and otherwise not.

    Args:
        z: ``[..., B, T, Z]``.
        emitter: the weights of a NADE emitter; or a network that maps ``z_t [..., Z]`` to the logits
            ``[..., D]`` and the initial state ``[..., U]``.
        lengths: int64 ``[B]``.
        mask: ``[B, T]`` or ``[B, T, D]``, 1 at observed entries. Draws are not masked.
        output_dim: ``D``, required with a network.
        order: int64 ``[D]``, a permutation: the order of the features. Logit ``d`` of the emitter, and row
            ``d`` of its weights, then belong to feature ``order[d]``. None: their own order.
        read: ``w_read [D, U]``, required with a network.
        write: ``w_write [D, U]``, required with a network.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011;
    arXiv 1609.09869, table 4 (DMM-NADE).
    """

    support = constraints.independent(constraints.boolean, 2)
    temperature = 1.0
    """Divides the logit of each feature in draws; densities are those of temperature 1."""
    _instead = "draws approximate it, as sample((1000,)).mean(0) does"

    def __init__(
        self,
        z: Tensor,
        emitter: NadeEmitterWeights | Network,
        lengths: Tensor,
        mask: Tensor | None = None,
        output_dim: int | None = None,
        order: Tensor | None = None,
        read: Tensor | None = None,
        write: Tensor | None = None,
    ) -> None:
        self.emitter: Any = emitter
        if isinstance(emitter, NadeEmitterWeights):
            output_dim = self._features("nade_emitter", emitter, z)
        D = check.size("output_dim", output_dim)
        super().__init__(z, D, lengths, mask)
        self.order = None if order is None else check.permutation("order", order, D, z.device)
        self._mask_in_order = mask if mask is None or mask.dim() == 2 else self._in_order(mask)
        self._output: tuple[Tensor, Tensor] | None = None
        if isinstance(emitter, NadeEmitterWeights):
            for name, tensor in (("read", read), ("write", write)):
                if tensor is not None:
                    check.fail(name, "None where the emitter is given as weights", check.describe(tensor))
            self._read, self._write = emitter.w_read, emitter.w_write
        else:
            self._read, self._write = self._checked_weights(read, write)
            # Computed here and not with the density: sample statements in the network belong to the model.
            self._output = self._compute_output(emitter)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw ``[*sample_shape, ..., B, T, D]``."""
        with torch.no_grad():
            shape = self._shape_of(sample_shape)
            logits, state = (
                self._finish(each) for each in self._output or nade_emitter(self.z, self.emitter)
            )
            if check.values_are_readable(logits) and bool(logits.isnan().any() | state.isnan().any()):
                check.fail("z", "latents with probabilities by the emitter", "NaN as a logit or a state")
            u = torch.rand(shape, dtype=logits.dtype, device=logits.device)
            u = tempered(u, self.temperature)
            draw = self._finish(ops.nade_draw(u, logits, state, self._read, self._write))
            return draw if self.order is None else draw[..., self.order.argsort()]

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        self._check_value(value, self.z)
        value, mask = self._in_order(value), self._mask_in_order
        if self._output is None:
            given = (value, self.z, self.emitter, self.lengths, mask)
            log_prob = self._compute("nade_emission_log_prob", *given, gradient=gradient)
        else:
            keep = observed(self.lengths, self.event_shape[0], mask)
            with torch.autocast(value.device.type, enabled=False):
                logits = nade_logits(torch.where(keep, value, 0.0), *self._output, self._read, self._write)
            log_prob = self._compute("bernoulli_log_prob", value, logits, self.lengths, mask)
        return self._spread(log_prob)

    def _in_order(self, features: Tensor) -> Tensor:
        return features if self.order is None else features[..., self.order]

    def _checked_weights(self, read: object, write: object) -> tuple[Tensor, Tensor]:
        """Check the weights that read and write the state, and return them."""
        D = self.event_shape[-1]
        w_read, w_write = check.floating("read", read), check.floating("write", write)
        check.trailing("read", w_read, (D, -1), "[D, U]")
        check.shape("read", w_read, (D, w_read.shape[-1]))
        check.shape("write", w_write, w_read.shape)
        for name, tensor in (("read", w_read), ("write", w_write)):
            if not autocast_is_on():
                check.like(name, tensor, self.z, "z")
        return w_read, w_write

    def _compute_output(self, emitter: Network) -> tuple[Tensor, Tensor]:
        """The logits and the initial state returned by a network."""
        check_network("emitter", emitter, "z_t")
        output = emitter(self.z)
        if not isinstance(output, tuple | list) or len(output) != 2:
            check.fail("emitter", "a pair (logits, state)", check.describe(output), TypeError)
        of_state = (*self.z.shape[:-1], self._read.shape[-1])
        logits = checked_output("logits of emitter", output[0], self._output_shape, self.z.dtype)
        return logits, checked_output("state of emitter", output[1], of_state, self.z.dtype)
