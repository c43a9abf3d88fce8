"""The table of shapes that every op and backend is tested with; the table of ops is the package's."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.draws import Sizes
from dmm_fast.ops.schema import OPS


@dataclass(frozen=True, kw_only=True)
class Case(Sizes):
    """Sizes, small by default, and variants of a call."""

    name: str = field(kw_only=False)
    B: int = 3
    T: int = 4
    D: int = 5
    Z: int = 3
    H: int = 6
    R: int = 4
    G: int = 5
    E: int = 7
    U: int = 6
    K: int = 2
    F: int = 8
    X: int = 2
    mask_dtype: str = "bool"  # "float": the dtype of the call
    poison: str = ""  # value at invalid steps and under the mask: "nan" or "inf"
    layout: str = "contiguous"  # or "time_major", "feature_major", "sliced", "expanded"
    incoming: str = "random"  # gradients: or "strided", "expanded" or "partial" (first output only)
    seed: int = 0


def _sizes(text: str) -> dict[str, Any]:
    """The sizes by letter in a list such as ``"B5 T7"``."""
    return {size[0]: int(size[1:]) for size in text.split()}


_PRIMES = _sizes("B5 T7 D23 Z11 H13 R17 G19 E7 U37 K3 F29 X31")
_WIDE = _sizes("B2 T3 D33 Z33 H65 R33 G65 E65 U65 K1 F65 X33")
_TALL = _sizes("B65 T2 D3 Z2 H5 R3 G4 E3 U4 F4 X1")
_TUTORIAL = _sizes("B4 T5 D88 Z100 H600 R200 G200 E100 U100 F100 X0")
_TINY = _sizes("B3 T3 D2 Z2 H3 R2 G3 E2 U3 F4 X1")
_RAGGED = {"lengths": "ragged", "mask": "dims", "poison": "nan"}
_ZEROS = {"lengths": "zeros", "mask": "steps", "poison": "nan"}

CASES = {
    case.name: case
    for case in (
        Case("small"),
        Case("ones", **dict.fromkeys("BTDZHRGEUKF", 1), X=0, start="rows", nonlinearity="tanh"),
        Case("one_row", B=1, T=7, lengths="ragged", start="rows", incoming="expanded", direction="forward"),
        Case("one_step", B=5, T=1, mask="dims", layout="sliced", incoming="partial"),
        Case("primes", **_PRIMES, **_ZEROS, start="rows", incoming="strided", nonlinearity="tanh"),
        Case("empty_rows", X=0, B=4, T=5, **_ZEROS, mask_dtype="float"),
        Case("particles", particles=(3,), shared=True, **_RAGGED),
        Case(
            "particles_2d",
            particles=(2, 2),
            start="particles",
            lengths="ragged",
            mask="steps",
            poison="inf",
            layout="time_major",
            incoming="strided",
            direction="forward",
        ),
        Case("wide", **_WIDE, **_RAGGED, layout="feature_major", incoming="partial", direction="forward"),
        Case(
            "expanded",
            particles=(2,),
            mask="dims",
            mask_dtype="float",
            layout="expanded",
            incoming="expanded",
            nonlinearity="tanh",
        ),
        Case(
            "many_rows",
            **_TALL,
            **_ZEROS,
            mask_dtype="float",
            start="rows",
            layout="sliced",
            direction="forward",
        ),
        Case("many_steps", B=2, T=33, **_RAGGED, layout="time_major", direction="forward"),
        Case("tutorial", **_TUTORIAL, lengths="ragged", poison="nan", incoming="expanded"),
    )
}

# Small enough for numerical differentiation, yet ragged, masked, poisoned, and with particles.
TINY = Case("tiny", **_TINY, **_ZEROS, particles=(2,), shared=True, start="rows")

SEQUENCE_OPS = [name for name, op in OPS.items() if op.is_sequence]
