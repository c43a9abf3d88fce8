"""The weights of the networks: their tensors and the dimensions of each."""

from dataclasses import dataclass
from typing import Any

from dmm_fast.reference import (
    CombinerWeights,
    EmitterWeights,
    FlowWeights,
    GaussianEmitterWeights,
    NadeEmitterWeights,
    TransitionWeights,
)


@dataclass(frozen=True)
class Weights:
    """A named tuple of weights, with a word of size letters for each field."""

    tuple_type: type[Any]
    words: tuple[str, ...]

    @classmethod
    def of(cls, kind: type[Any], words: str) -> "Weights":
        """Read the short form of the table."""
        return cls(kind, tuple(words.split()))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the tensors."""
        names: tuple[str, ...] = self.tuple_type._fields
        return names

    @property
    def entries(self) -> tuple[tuple[str, str], ...]:
        """The name of each tensor with its word of dimensions."""
        return tuple(zip(self.fields, self.words, strict=True))


WEIGHTS = {
    "transition": Weights.of(TransitionWeights, "GZ G ZG Z RZ R ZR Z ZZ Z ZZ Z"),
    "driven_transition": Weights.of(TransitionWeights, "GI G ZG Z RI R ZR Z ZZ Z ZI Z"),
    "combiner": Weights.of(CombinerWeights, "HZ H ZH Z ZH Z"),
    "flows": Weights.of(FlowWeights, "KFZ KF KZF KZ KZF KZ"),
    "emitter": Weights.of(EmitterWeights, "EZ E EE E DE D"),
    "gaussian_emitter": Weights.of(GaussianEmitterWeights, "EZ E EE E DE D DE D"),
    "nade_emitter": Weights.of(NadeEmitterWeights, "EZ E EE E DE D UE U DU DU"),
}
"""The kinds of weights by name, with size letters as in the table of ops."""
