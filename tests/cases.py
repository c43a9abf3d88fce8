"""The table of shapes that every op and backend is run through; that of ops is the package's own."""

from dataclasses import dataclass, field

from benchmarks.draws import Sizes
from dmm_fast.ops.schema import OPS


@dataclass(frozen=True, kw_only=True)
class Case(Sizes):
    """Sizes, small ones unless given, and the circumstances of a call."""

    name: str = field(kw_only=False)
    B: int = 3
    T: int = 4
    D: int = 5
    Z: int = 3
    H: int = 6
    R: int = 4
    G: int = 5
    E: int = 7
    K: int = 2
    F: int = 8
    mask_dtype: str = "bool"  # or "float": the dtype of the call
    poison: str = ""  # what stands at invalid steps and under the mask: "nan" or "inf"
    layout: str = "contiguous"  # or "time_major", "feature_major", "sliced", "expanded"
    incoming: str = "random"  # gradients: or "strided", "expanded" or "partial" (first output only)
    seed: int = 0


_PRIMES = {"B": 5, "T": 7, "D": 23, "Z": 11, "H": 13, "R": 17, "G": 19, "E": 7, "K": 3, "F": 29}
_WIDE = {"B": 2, "T": 3, "D": 33, "Z": 33, "H": 65, "R": 33, "G": 65, "E": 65, "K": 1, "F": 65}
_TALL = {"B": 65, "T": 2, "D": 3, "Z": 2, "H": 5, "R": 3, "G": 4, "E": 3, "F": 4}
_TUTORIAL = {"B": 4, "T": 5, "D": 88, "Z": 100, "H": 600, "R": 200, "G": 200, "E": 100, "F": 100}
_TINY = {"B": 3, "T": 3, "D": 2, "Z": 2, "H": 3, "R": 2, "G": 3, "E": 2, "F": 4}
_RAGGED = {"lengths": "ragged", "mask": "dims", "poison": "nan"}
_ZEROS = {"lengths": "zeros", "mask": "steps", "poison": "nan"}

CASES = {
    case.name: case
    for case in (
        Case("small"),
        Case("ones", B=1, T=1, D=1, Z=1, H=1, R=1, G=1, E=1, K=1, F=1, start="rows", nonlinearity="tanh"),
        Case("one_row", B=1, T=7, lengths="ragged", start="rows", incoming="expanded", direction="forward"),
        Case("one_step", B=5, T=1, mask="dims", layout="sliced", incoming="partial"),
        Case("primes", **_PRIMES, **_ZEROS, start="rows", incoming="strided", nonlinearity="tanh"),
        Case("empty_rows", B=4, T=5, **_ZEROS, mask_dtype="float"),
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

# Small enough to differentiate numerically, and still uneven, masked, poisoned, with particles.
TINY = Case("tiny", **_TINY, **_ZEROS, particles=(2,), shared=True, start="rows")

SEQUENCE_OPS = [name for name, op in OPS.items() if op.is_sequence]
