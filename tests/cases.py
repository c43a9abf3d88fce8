"""Two tables, shapes and ops: what every backend is run through."""

from dataclasses import dataclass

from dmm_fast.reference import (
    CombinerWeights,
    EmitterWeights,
    GaussianEmitterWeights,
    TransitionWeights,
)


@dataclass(frozen=True)
class Case:
    """Sizes and the circumstances of a call. Letters are those of ``dmm_fast.check.weights``."""

    name: str
    B: int = 3
    T: int = 4
    D: int = 5
    Z: int = 3
    H: int = 6
    R: int = 4
    G: int = 5
    E: int = 7
    particles: tuple[int, ...] = ()
    shared: bool = False  # x, h and value have no particle dimensions
    start: str = "one"  # h_0, z_0, z_q_0 for "one" [Z], "rows" [B, Z] or "particles" [..., B, Z]
    lengths: str = "full"  # or "ragged", with a row of one step; "zeros": ragged, rows of no step
    mask: str = "none"  # or "steps" [B, T] or "dims" [B, T, D]
    mask_dtype: str = "bool"  # or "float": the dtype of the call
    poison: str = ""  # what stands at invalid steps and under the mask: "nan" or "inf"
    layout: str = "contiguous"  # or "time_major", "feature_major", "sliced", "expanded"
    incoming: str = "random"  # gradients: or "strided", "expanded" or "partial" (first output only)
    nonlinearity: str = "relu"
    seed: int = 0


_PRIMES = {"B": 5, "T": 7, "D": 23, "Z": 11, "H": 13, "R": 17, "G": 19, "E": 7}
_WIDE = {"B": 2, "T": 3, "D": 33, "Z": 33, "H": 65, "R": 33, "G": 65, "E": 65}
_TALL = {"B": 65, "T": 2, "D": 3, "Z": 2, "H": 5, "R": 3, "G": 4, "E": 3}
_TUTORIAL = {"B": 4, "T": 5, "D": 88, "Z": 100, "H": 600, "R": 200, "G": 200, "E": 100}
_TINY = {"B": 3, "T": 3, "D": 2, "Z": 2, "H": 3, "R": 2, "G": 3, "E": 2}
_RAGGED = {"lengths": "ragged", "mask": "dims", "poison": "nan"}
_ZEROS = {"lengths": "zeros", "mask": "steps", "poison": "nan"}

CASES = {
    case.name: case
    for case in (
        Case("small"),
        Case("ones", B=1, T=1, D=1, Z=1, H=1, R=1, G=1, E=1, start="rows", nonlinearity="tanh"),
        Case("one_row", B=1, T=7, lengths="ragged", start="rows", incoming="expanded"),
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
        ),
        Case("wide", **_WIDE, **_RAGGED, layout="feature_major", incoming="partial"),
        Case(
            "expanded",
            particles=(2,),
            mask="dims",
            mask_dtype="float",
            layout="expanded",
            incoming="expanded",
            nonlinearity="tanh",
        ),
        Case("many_rows", **_TALL, **_ZEROS, mask_dtype="float", start="rows", layout="sliced"),
        Case("many_steps", B=2, T=33, **_RAGGED, layout="time_major"),
        Case("tutorial", **_TUTORIAL, lengths="ragged", poison="nan", incoming="expanded"),
    )
}

# Small enough to differentiate numerically, and still uneven, masked, poisoned, with particles.
TINY = Case("tiny", **_TINY, **_ZEROS, particles=(2,), shared=True, start="rows")


@dataclass(frozen=True)
class Op:
    """An op's arguments in the order of its signature, each with its dimensions.

    ``P`` are the particles, ``p`` the particles unless the case shares them, ``s`` the dimensions of a
    starting state. What follows a colon is how numbers are drawn. ``leading`` is the argument whose
    dtype, device and sizes the others must fit.
    """

    name: str
    leading: str
    args: dict[str, str]
    outputs: tuple[str, ...]

    @property
    def is_sequence(self) -> bool:
        """Whether the op knows lengths."""
        return "lengths" in self.args


WEIGHTS: dict[str, tuple[type, str]] = {
    "transition": (TransitionWeights, "GZ G ZG Z RZ R ZR Z ZZ Z ZZ Z"),
    "combiner": (CombinerWeights, "HZ H ZH Z ZH Z"),
    "emitter": (EmitterWeights, "EZ E EE E DE D"),
    "gaussian_emitter": (GaussianEmitterWeights, "EZ E EE E DE D DE D"),
}

_Z, _X = "PBTZ", "pBTD"
_BINARY = "pBTD:binary"
_SUM = ("PB",)
_LENGTHS = {"lengths": "lengths"}
_OBSERVED = {"lengths": "lengths", "mask": "mask"}

OPS = {
    op.name: op
    for op in (
        Op("gated_transition", "z_prev", {"z_prev": _Z, "weights": "transition"}, (_Z, _Z)),
        Op("combiner", "z_prev", {"z_prev": _Z, "h": "pBTH", "weights": "combiner"}, (_Z, _Z)),
        Op("emitter", "z", {"z": _Z, "weights": "emitter"}, ("PBTD",)),
        Op("gaussian_emitter", "z", {"z": _Z, "weights": "gaussian_emitter"}, ("PBTD", "PBTD")),
        Op(
            "transition_log_prob",
            "z",
            {"z": _Z, "z_0": "sZ", "weights": "transition", **_LENGTHS},
            _SUM,
        ),
        Op(
            "transition_kl",
            "z",
            {"z": _Z, "loc": _Z, "pre_scale": _Z, "z_0": "sZ", "weights": "transition", **_LENGTHS},
            _SUM,
        ),
        Op(
            "combiner_log_prob",
            "z",
            {"z": _Z, "h": "pBTH", "z_q_0": "sZ", "weights": "combiner", **_LENGTHS},
            _SUM,
        ),
        Op("drawn_log_prob", "eps", {"eps": _Z, "pre_scale": "PBTZ:wide", **_LENGTHS}, _SUM),
        Op(
            "emission_log_prob",
            "z",
            {"x": _BINARY, "z": _Z, "weights": "emitter", **_OBSERVED},
            _SUM,
        ),
        Op(
            "gaussian_emission_log_prob",
            "z",
            {"x": _X, "z": _Z, "weights": "gaussian_emitter", **_OBSERVED},
            _SUM,
        ),
        Op(
            "normal_log_prob",
            "value",
            {"value": _X, "loc": "PBTD", "scale": "pBTD:positive", **_OBSERVED},
            _SUM,
        ),
        Op("bernoulli_log_prob", "logits", {"x": _BINARY, "logits": "PBTD", **_OBSERVED}, _SUM),
        Op(
            "input_projection",
            "x",
            {"x": "PBTD:sparse", "w": "HD", "b": "H", **_LENGTHS},
            ("PBTH",),
        ),
        Op(
            "rnn_scan",
            "x_proj",
            {"x_proj": "PBTH", "w_hh": "HH", "h_0": "sH", **_LENGTHS, "nonlinearity": "name"},
            ("PBTH",),
        ),
        Op(
            "combiner_scan",
            "eps",
            {"h": "pBTH", "eps": _Z, "z_q_0": "sZ", "weights": "combiner", **_LENGTHS},
            (_Z, _Z, _Z),
        ),
    )
}
SEQUENCE_OPS = [name for name, op in OPS.items() if op.is_sequence]
