"""Inputs of a model's networks beside the latents: past data, controls and the mask of observed values."""

from typing import NamedTuple

import torch
from torch import Tensor

from dmm_fast.reference import previous


class Inputs(NamedTuple):
    """The sizes of these inputs, and their concatenation.

    The transition reads ``[z_{t-1}, x_{t-1}, u_t, s]``, the emitter ``[z_t, x_{t-1}]`` and the guide's
    recurrent network ``[x_t, m_t, u_t, s]``. All but z and x_t are optional: ``x_{t-1}`` is present according
    to ``augment``, ``m_t`` (1 where x_t is observed) with ``mask_input``, and the controls ``u_t`` and static
    covariates ``s`` if the model has them. Missing values of x, and those before the first step, are 0.
    """

    input_dim: int
    augment: str | None
    control_dim: int
    static_dim: int
    mask_input: bool

    @property
    def in_transition(self) -> bool:
        """True if the transition reads x_{t-1}."""
        return self.augment in ("transition", "both")

    @property
    def in_emission(self) -> bool:
        """True if the emission reads x_{t-1}."""
        return self.augment in ("emission", "both")

    @property
    def width_of_transition(self) -> int:
        """Number of inputs of the transition beside z_{t-1}."""
        return self.in_transition * self.input_dim + self.control_dim + self.static_dim

    @property
    def width_of_emission(self) -> int:
        """Number of inputs of the emitter beside z_t."""
        return self.in_emission * self.input_dim

    @property
    def width_of_guide(self) -> int:
        """Number of inputs of the recurrent network."""
        return (1 + self.mask_input) * self.input_dim + self.control_dim + self.static_dim

    def of_transition(self, past: Tensor | None, controls: Tensor | None) -> Tensor | None:
        """``[..., X]`` from the past data ``[..., D]`` and the controls ``[..., U + S]``; None if X is 0."""
        parts = [past] if self.in_transition and past is not None else []
        return beside(*parts, *([] if controls is None else [controls])) if self.width_of_transition else None

    def of_emission(self, z: Tensor, past: Tensor | None) -> Tensor:
        """``[..., Z]`` or ``[..., Z + D]``: the emitter's input."""
        return beside(z, past) if self.in_emission and past is not None else z

    def of_guide(self, x: Tensor, observed: Tensor | None, controls: Tensor | None) -> Tensor:
        """``[B, T, *]``: the recurrent network's input, from ``x`` with 0 at unobserved entries."""
        parts = [x]
        if observed is not None:
            parts.append(observed.expand_as(x).to(x.dtype))
        if controls is not None:
            parts.append(controls)
        return beside(*parts)


def beside(*parts: Tensor) -> Tensor:
    """Concatenation of tensors along the features; the other dimensions broadcast."""
    if len(parts) == 1:
        return parts[0]
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, -1) for part in parts], dim=-1)


def one_step_later(x: Tensor) -> Tensor:
    """``x_{t-1}`` for ``x [..., T, D]``: 0 before the first step."""
    return previous(x, x.new_zeros(x.shape[-1]))
