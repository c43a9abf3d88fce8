"""How far each op of a backend is from float64, beside how far eager float32 is on the same inputs.

Sizes are the tutorial's. Errors are norm-wise and relative, one for each output and each gradient,
medians over seeds. Inputs are drawn in float32; eager, backend and reference all see those numbers.
"""

import inspect
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS
from dmm_fast import ops, reference
from dmm_fast.ops import BackendError, backend
from dmm_fast.reference import (
    CombinerWeights,
    EmitterWeights,
    GaussianEmitterWeights,
    TransitionWeights,
)

SEEDS = (0, 1, 2)
# A backend may be this much further from the truth than eager PyTorch is ...
EAGER_FACTOR = 3.0
# ... and where eager PyTorch is lucky, this far.
FLOOR = 8 * torch.finfo(torch.float32).eps
# Which side of zero a ReLU's input is on must not be a matter of rounding: single entries of a
# gradient would jump, in eager and backend alike. Draws with an input nearer than this are drawn again.
RELU_MARGIN = 1e-6
MAX_DRAWS = 1000

Inputs = dict[str, Any]
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Letters are those of ``dmm_fast.reference``."""

    B: int = TUTORIAL_BATCH
    T: int = TUTORIAL_STEPS
    D: int = 88
    Z: int = 100
    H: int = 600
    R: int = 200
    E: int = 100

    def shape(self, letters: str) -> list[int]:
        """``"BTZ"`` as numbers."""
        return [getattr(self, letter) for letter in letters]


QUICK = Sizes(B=3, T=5, D=7, Z=4, H=6, R=5, E=6)

# Arguments by name, the same in every op: the shape, and how numbers are drawn if not from N(0, 1).
_SHAPES = {
    "z_prev": "BTZ",
    "z": "BTZ",
    "h": "BTH",
    "eps": "BTZ",
    "value": "BTZ",
    "loc": "BTZ",
    "pre_scale": "BTZ",
    "scale": "BTZ:positive",
    "x": "BTD:binary",
    "logits": "BTD",
    "x_proj": "BTH",
    "w": "HD:uniform",
    "b": "H",
    "w_hh": "HH:uniform",
    "h_0": "H",
    "z_0": "Z",
    "z_q_0": "Z",
}
_WEIGHTS: dict[Any, str] = {
    TransitionWeights: "RZ R ZR Z RZ R ZR Z ZZ Z ZZ Z",
    CombinerWeights: "HZ H ZH Z ZH Z",
    EmitterWeights: "EZ E EE E DE D",
    GaussianEmitterWeights: "EZ E EE E DE D DE D",
}
_LEFT_AT_DEFAULT = ("mask", "nonlinearity")
_ADAM_LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs")
# In the middle of training, with the tutorial's settings.
ADAM_OPTIONS = {
    "step": 10,
    "lr": 3e-4,
    "beta1": 0.96,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 2.0,
    "clip_norm": 10.0,
}


@dataclass(frozen=True)
class ErrorRow:
    """One line of the results' ``errors`` list: a correctness row, and what eager float32 errs."""

    op: str
    backend: str
    case: str
    max_rel_error: float
    bound: float
    ok: bool
    eager_rel_error: float

    def as_dict(self) -> dict[str, object]:
        """The fields of a results row."""
        return asdict(self)


def about(sizes: Sizes) -> dict[str, Any]:
    """What a reader needs in order to understand the rows."""
    return {
        "seeds": len(SEEDS),
        "eager_factor": EAGER_FACTOR,
        "floor": FLOOR,
        "relu_margin": RELU_MARGIN,
        "sizes": asdict(sizes),
    }


def measure(backend_name: str, device: str = "cpu", sizes: Sizes | None = None) -> list[ErrorRow]:
    """Rows for every op that the backend computes on the device, in order of the ops' names."""
    return [
        row
        for op in computed_by(backend_name, device)
        for row in op_rows(op, backend_name, device, sizes or Sizes())
    ]


def computed_by(backend_name: str, device: str) -> list[str]:
    """The ops that the backend computes in float32 on the device, in this build."""
    able = []
    with ops.use_backend(backend_name):
        for op in ops.info()["ops"]:
            try:
                backend.chosen(op, device)
            except BackendError:
                continue
            able.append(op)
    return able


def op_rows(op: str, backend_name: str, device: str, sizes: Sizes) -> Iterator[ErrorRow]:
    """A row for each result of one op, full and, where the op knows lengths, ragged."""
    for case in ("full", "ragged") if "lengths" in _arguments(op) else ("full",):
        pairs = [_errors(op, backend_name, device, sizes, case, seed) for seed in SEEDS]
        for name in pairs[0][0]:
            eager, error = (statistics.median(p[side][name] for p in pairs) for side in (0, 1))
            bound = max(EAGER_FACTOR * eager, FLOOR)
            where = f"B={sizes.B}, T={sizes.T}, {case}"
            yield ErrorRow(f"{op}: {name}", backend_name, where, error, bound, error <= bound, eager)


def _errors(
    op: str, backend_name: str, device: str, sizes: Sizes, case: str, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The errors of eager float32, and of the backend, by result."""
    inputs, truth, eager = _yardstick(op, device, sizes, case, seed)
    with ops.use_backend(backend_name):
        ours = results_of(op)(getattr(ops, op), inputs)
    return eager, relative_errors(ours, truth)


@lru_cache(maxsize=2 * len(SEEDS))
def _yardstick(
    op: str, device: str, sizes: Sizes, case: str, seed: int
) -> tuple[Inputs, Results, dict[str, float]]:
    """Arguments on the device, the truth, and the errors of eager float32; kept for the next backend."""
    inputs, results = draw(op, sizes, case, seed, device), results_of(op)
    truth = results(getattr(reference, op), map_tensors(inputs, to_double))
    return inputs, truth, relative_errors(results(getattr(reference, op), inputs), truth)


def relative_errors(got: Results, truth: Results) -> dict[str, float]:
    """The norm of each difference relative to the norm of the truth; 0 for two zeros, NaN is inf."""
    errors = {}
    for name, expected in truth.items():
        difference = (got[name].double() - expected).norm().item()
        norm = expected.norm().item()
        error = difference / norm if norm > 0 else (0.0 if difference == 0 else inf)
        errors[name] = error if error == error else inf
    return errors


# --- inputs -----------------------------------------------------------------------------------------


def draw(op: str, sizes: Sizes, case: str, seed: int, device: str = "cpu") -> Inputs:
    """The arguments of the op by name, float32, drawn on the CPU; the first draw that keeps off the kinks."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(MAX_DRAWS):
        drawn = draw_once(op, sizes, case, generator)
        inputs = map_tensors(drawn, lambda tensor: tensor.to(device))
        if op == "clipped_adam":
            return inputs
        with torch.no_grad(), _NearestToAKink() as kinks:
            getattr(reference, op)(**map_tensors(inputs, to_double))
        if kinks.distance > RELU_MARGIN:
            return inputs
    raise RuntimeError(f"{op}: expected a draw off every kink in {MAX_DRAWS}, got none")


def draw_once(op: str, sizes: Sizes, case: str, generator: torch.Generator) -> Inputs:
    """The arguments of the op by name as they come, next to a kink or not."""
    if op == "clipped_adam":
        return _draw_adam(sizes, generator)
    return {name: _draw_argument(name, kind, sizes, case, generator) for name, kind in _arguments(op).items()}


def _arguments(op: str) -> dict[str, Any]:
    """What the op is called with: the argument's name and its annotation."""
    parameters = inspect.signature(getattr(reference, op)).parameters
    return {n: p.annotation for n, p in parameters.items() if n not in _LEFT_AT_DEFAULT}


def _draw_argument(name: str, kind: Any, sizes: Sizes, case: str, generator: torch.Generator) -> Any:
    if name == "lengths":
        B, T = sizes.B, sizes.T
        return torch.tensor([T if case == "full" else T - b * (T - 1) // (B - 1) for b in range(B)])
    if kind in _WEIGHTS:
        return _draw_weights(kind, sizes, generator)
    letters, _, how = _SHAPES[name].partition(":")
    number = torch.randn(sizes.shape(letters), generator=generator)
    if how == "binary":
        return (number > 0.5).float()
    if how == "positive":
        return 0.1 + torch.nn.functional.softplus(number)
    if how == "uniform":
        return (2.0 * torch.rand(number.shape, generator=generator) - 1.0) / sqrt(number.shape[-1])
    return number


def _draw_weights(kind: Any, sizes: Sizes, generator: torch.Generator) -> Any:
    """As ``nn.Linear`` draws them: uniform within 1 / sqrt(inputs)."""
    tensors: list[Tensor] = []
    bound = 1.0
    for letters in _WEIGHTS[kind].split():
        shape = sizes.shape(letters)
        bound = 1.0 / sqrt(shape[-1]) if len(shape) == 2 else bound
        tensors.append((2.0 * torch.rand(shape, generator=generator) - 1.0) * bound)
    return kind(*tensors)


def _draw_adam(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """The weights of the model, gradients of which some are clipped, and moving averages."""
    shapes = [sizes.shape(letters) for words in _WEIGHTS.values() for letters in words.split()]

    def normal(scale: float) -> list[Tensor]:
        return [scale * torch.randn(shape, generator=generator) for shape in shapes]

    clipped = normal(ADAM_OPTIONS["clip_norm"])
    squares = [number.square() for number in normal(1.0)]
    return dict(zip(_ADAM_LISTS, (normal(0.1), clipped, normal(1.0), squares), strict=True))


def to_double(tensor: Tensor) -> Tensor:
    """The same numbers in float64."""
    return tensor.double() if tensor.is_floating_point() else tensor


def map_tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """``change`` applied to a copy of every tensor, those within weights and lists too."""
    changed: Inputs = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            changed[name] = change(value.clone())
        elif isinstance(value, list):
            changed[name] = [change(tensor.clone()) for tensor in value]
        else:
            changed[name] = type(value)(*(change(tensor.clone()) for tensor in value))
    return changed


class _NearestToAKink(TorchFunctionMode):
    """Keeps the smallest magnitude that goes into a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = inf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.relu, torch.nn.functional.relu):
            self.distance = min(self.distance, args[0].abs().min().item())
        return func(*args, **(kwargs or {}))


# --- results ----------------------------------------------------------------------------------------


def results_of(op: str) -> Callable[..., Results]:
    """What calls a function with the arguments of ``op`` and names what comes of it."""
    return _adam_results if op == "clipped_adam" else _op_results


def _op_results(function: Callable[..., Any], inputs: Inputs, gradients: bool = True) -> Results:
    """Outputs, and for one random gradient of each the gradients of every floating argument."""
    wanted = dict(differentiable(inputs)) if gradients else {}
    for tensor in wanted.values():
        tensor.requires_grad_()
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    values = {f"value {k}" if len(outputs) > 1 else "value": o.detach() for k, o in enumerate(outputs)}
    if not gradients:
        return values
    generator = torch.Generator().manual_seed(len(SEEDS))
    incoming = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    found = torch.autograd.grad(outputs, list(wanted.values()), incoming, materialize_grads=True)
    for tensor in wanted.values():
        tensor.requires_grad_(False)
    return values | {f"gradient of {n}": g for n, g in zip(wanted, found, strict=True)}


def differentiable(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Every floating argument, those within weights too, by name."""
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield name, value
        else:
            yield from ((f"{name}.{f}", t) for f, t in zip(value._fields, value, strict=True))


def _adam_results(function: Callable[..., Any], inputs: Inputs, gradients: bool = False) -> Results:
    """The content of each list after one step; there are no ``gradients`` to ask for."""
    changed = map_tensors(inputs, lambda tensor: tensor)
    function(**changed, **ADAM_OPTIONS)
    return {f"value of {n}": torch.cat([tensor.flatten() for tensor in changed[n]]) for n in _ADAM_LISTS}
