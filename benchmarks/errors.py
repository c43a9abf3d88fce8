"""Errors of each op of a backend against float64, and those of eager float32 on the same inputs.

Sizes are the tutorial's. Errors are norm-wise and relative, one for each output and each gradient, medians
over seeds. Inputs are drawn in float32 and are the same for eager PyTorch, backend and float64.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import count
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from benchmarks.draws import Inputs, Sizes, differentiable, draw, map_tensors, off_kinks, to_double
from dmm_fast import _extension, ops, reference
from dmm_fast.ops import _backends
from dmm_fast.ops.schema import CLIPPED_ADAM, OPS, WEIGHTS

SEEDS = (0, 1, 2)
# Bound of the error of a float32 backend, in units of the error of eager PyTorch ...
EAGER_FACTOR = 3.0
# ... but at least this many eps, as eager PyTorch may be exact by chance ...
FLOOR_EPS = 8.0
# ... and twice as many on processors without a fused multiply-add, which also round every product.
UNFUSED_FACTOR = 2.0
# Smaller than in the tests: among millions of ReLU inputs at the tutorial's sizes, some are close to zero.
RELU_MARGIN = 1e-6

QUICK = Sizes(B=3, T=5, D=7, Z=4, H=6, R=5, G=5, E=6)

_ADAM_LISTS = tuple(a.name for a in CLIPPED_ADAM.arguments[:4])
# A step in the middle of training, with the tutorial's settings.
ADAM_OPTIONS = {
    "step": 10,
    "lr": 3e-4,
    "beta1": 0.96,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 2.0,
    "clip_norm": 10.0,
}

Results = dict[str, Tensor]


@dataclass(frozen=True)
class ErrorRow:
    """A row of the results' ``errors`` list: a correctness row with the error of eager float32."""

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
    """The settings that the rows were measured with."""
    return {
        "seeds": len(SEEDS),
        "eager_factor": EAGER_FACTOR,
        "floor": bound(0.0),
        "relu_margin": RELU_MARGIN,
        "sizes": sizes.letters,
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
    return [op for op in ops.info()["ops"] if backend_name in _backends.candidates(op, device, torch.float32)]


def op_rows(op: str, backend_name: str, device: str, sizes: Sizes) -> Iterator[ErrorRow]:
    """A row for each result of one op, for full and, if the op takes lengths, ragged batches."""
    for lengths in ("full", "ragged") if op in OPS and OPS[op].is_sequence else ("full",):
        at = replace(sizes, lengths=lengths)
        pairs = [_errors(op, backend_name, device, at, seed) for seed in SEEDS]
        for name in pairs[0][0]:
            eager, error = (statistics.median(p[side][name] for p in pairs) for side in (0, 1))
            where = f"B={sizes.B}, T={sizes.T}, {lengths}"
            most = bound(eager)
            yield ErrorRow(f"{op}: {name}", backend_name, where, error, most, error <= most, eager)


def _errors(
    op: str, backend_name: str, device: str, sizes: Sizes, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The errors of eager float32 and of the backend, by result."""
    inputs, truth, eager = _eager_errors(op, device, sizes, seed)
    with ops.use_backend(backend_name):
        ours = results_of(op)(getattr(ops, op), inputs)
    return eager, relative_errors(ours, truth)


@lru_cache(maxsize=2 * len(SEEDS))
def _eager_errors(op: str, device: str, sizes: Sizes, seed: int) -> tuple[Inputs, Results, dict[str, float]]:
    """Arguments on the device, the float64 results, and the errors of eager float32; cached over backends."""
    inputs, results = arguments_off_kinks(op, sizes, seed, device), results_of(op)
    truth = results(getattr(reference, op), map_tensors(inputs, to_double))
    return inputs, truth, relative_errors(results(getattr(reference, op), inputs), truth)


def relative_errors(got: Results, truth: Results) -> dict[str, float]:
    """The :func:`relative_error` of each result."""
    return {name: relative_error(got[name], expected) for name, expected in truth.items()}


def relative_error(value: Tensor, truth: Tensor) -> float:
    """The norm of the difference relative to the norm of the truth; 0 if both are zero, inf for NaN."""
    difference = (value.to(truth.device).double() - truth).norm().item()
    norm = truth.norm().item()
    error = difference / norm if norm > 0 else (0.0 if difference == 0 else inf)
    return error if error == error else inf


def bound(eager: float, dtype: torch.dtype = torch.float32) -> float:
    """The bound of a backend's error given that of eager PyTorch; if that is infinite, the floor."""
    unfused = _extension.instruction_set() == "baseline"
    floor = FLOOR_EPS * torch.finfo(dtype).eps * (UNFUSED_FACTOR if unfused else 1.0)
    return max(floor, EAGER_FACTOR * eager) if isfinite(eager) else floor


# --- arguments --------------------------------------------------------------------------------------


def arguments_off_kinks(op: str, sizes: Sizes, seed: int, device: str = "cpu") -> Inputs:
    """Draw the arguments of the op by name, float32, without a ReLU input near zero."""
    generator = torch.Generator().manual_seed(seed)
    draws = (arguments(op, sizes, generator, device) for _ in count())
    return next(draws) if op == "clipped_adam" else off_kinks(op, draws, RELU_MARGIN)


def arguments(op: str, sizes: Sizes, generator: torch.Generator, device: str = "cpu") -> Inputs:
    """Draw the arguments of the op by name, with ReLU inputs of any size."""
    adam = op == "clipped_adam"
    drawn = _adam_lists(sizes, generator) if adam else draw(OPS[op].arguments, sizes, generator)
    return map_tensors(drawn, lambda _, tensor: tensor.to(device))


def _adam_lists(sizes: Sizes, generator: torch.Generator) -> Inputs:
    """Draw weights of the model, gradients of which some are clipped, and moving averages."""
    shapes = [sizes.shape(word)[0] for weights in WEIGHTS.values() for word in weights.words]

    def normal(scale: float) -> list[Tensor]:
        return [scale * torch.randn(shape, generator=generator) for shape in shapes]

    clipped = normal(ADAM_OPTIONS["clip_norm"])
    squares = [number.square() for number in normal(1.0)]
    return dict(zip(_ADAM_LISTS, (normal(0.1), clipped, normal(1.0), squares), strict=True))


# --- results ----------------------------------------------------------------------------------------


def results_of(op: str) -> Callable[..., Results]:
    """A function that calls its first argument with the arguments of ``op`` and names the results."""
    return _adam_results if op == "clipped_adam" else partial(_op_results, gradients=OPS[op].has_backward)


def _op_results(function: Callable[..., Any], inputs: Inputs, gradients: bool = True) -> Results:
    """The outputs, and the gradients of every floating-point argument for random incoming gradients."""
    incoming = torch.Generator().manual_seed(len(SEEDS))

    def gradients_for(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
        return [torch.randn(output.shape, generator=incoming).to(output) for output in outputs]

    if gradients:
        outputs, found = evaluate(function, inputs, gradients_for)
    else:
        outputs, found = as_tuple(function(**inputs)), {}
    values = {f"value {k}" if len(outputs) > 1 else "value": o.detach() for k, o in enumerate(outputs)}
    return values | {f"gradient of {name}": gradient for name, gradient in found.items()}


def evaluate(
    function: Callable[..., Any],
    inputs: Inputs,
    gradients_for: Callable[[tuple[Tensor, ...]], list[Tensor | None]],
    only: str | None = None,
) -> tuple[tuple[Tensor, ...], Results]:
    """The outputs of ``function(**inputs)`` and the gradient of each differentiable input.

    ``only`` names a single input to differentiate by; None: all, "": none.
    """
    wanted = {n: t for n, t in differentiable(inputs).items() if only in (None, n)}
    for tensor in wanted.values():
        tensor.requires_grad_()
    outputs = as_tuple(function(**inputs))
    if not wanted:
        return outputs, {}
    pairs = zip(outputs, gradients_for(outputs), strict=True)
    used = [(o, gradient) for o, gradient in pairs if gradient is not None and o.requires_grad]
    gradients = torch.autograd.grad(
        [output for output, _ in used],
        list(wanted.values()),
        [gradient for _, gradient in used],
        allow_unused=True,
    )
    named = zip(wanted.items(), gradients, strict=True)
    return (
        tuple(output.detach() for output in outputs),
        {name: torch.zeros_like(t) if g is None else g for (name, t), g in named},
    )


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """The outputs of an op, one or several, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _adam_results(function: Callable[..., Any], inputs: Inputs, gradients: bool = False) -> Results:
    """The content of each list after one step; ``gradients`` has no effect."""
    changed = map_tensors(inputs, lambda _, tensor: tensor.clone())
    function(**changed, **ADAM_OPTIONS)
    return {f"value of {n}": torch.cat([tensor.flatten() for tensor in changed[n]]) for n in _ADAM_LISTS}
