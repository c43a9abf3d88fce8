"""Run an op with its gradients, and hold a backend to the float64 reference."""

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.errors import Results, bound, evaluate
from benchmarks.errors import relative_error as error
from dmm_fast import ops, reference
from dmm_fast.ops import _backends
from dmm_fast.ops.schema import OPS
from tests.cases import TINY, Case
from tests.device import DEVICE
from tests.inputs import Inputs, build, differentiable, hidden, lay_out, tensors

DOUBLE_BOUND = 1e-12


def backends_for(op_name: str, device: str = DEVICE) -> list[str]:
    """The backends that compute the op on the device in this build."""
    able = _backends.candidates(op_name, device, torch.float32)
    return [name for name in ops.BACKENDS if name in able]


def dtypes_for(op_name: str, backend_name: str, device: str = DEVICE) -> list[torch.dtype]:
    """Which of float32 and float64 a backend computes the op in."""
    both = (torch.float32, torch.float64)
    return [dtype for dtype in both if backend_name in _backends.candidates(op_name, device, dtype)]


def incoming_gradients(outputs: tuple[Tensor, ...], case: Case) -> list[Tensor | None]:
    """A gradient for each output in the memory order the case asks for; the same for every dtype."""
    seed = zlib.crc32(f"incoming {case.name} {case.seed}".encode())
    generator = torch.Generator().manual_seed(seed)
    gradients: list[Tensor | None] = []
    for output in outputs:
        number = torch.randn(
            [1] * output.dim() if case.incoming == "expanded" else output.shape, generator=generator
        ).to(output)
        if case.incoming == "expanded":
            gradients.append(number.expand(output.shape))
        else:
            layout = "feature_major" if case.incoming == "strided" else "contiguous"
            gradients.append(lay_out(number, layout))
    return gradients[:1] + [None] * (len(outputs) - 1) if case.incoming == "partial" else gradients


def results(function: Callable[..., Any], case: Case, inputs: Inputs, only: str | None = None) -> Results:
    """Outputs and gradients by name, for the incoming gradients of the case."""
    outputs, gradients = evaluate(function, inputs, partial(incoming_gradients, case=case), only)
    named = {f"output {k}": output for k, output in enumerate(outputs)}
    return named | {f"gradient of {name}": gradient for name, gradient in gradients.items()}


def differentiated(op_name: str) -> str | None:
    """What an op is differentiated by: all inputs, or "" for none where it has no gradients."""
    return None if OPS[op_name].has_backward else ""


@lru_cache(maxsize=512)
def eager(op_name: str, case: Case, dtype: torch.dtype) -> Results:
    """What eager PyTorch makes of the case on a CPU; in float64 this is the truth."""
    inputs = build(op_name, case, dtype, "cpu")
    return results(getattr(reference, op_name), case, inputs, differentiated(op_name))


def run_backend(op_name: str, inputs: Inputs, case: Case, name: str, only: str | None = None) -> Results:
    """The results of the public op, computed by the backend of that name."""
    with ops.use_backend(name):
        only = differentiated(op_name) if only is None else only
        return results(getattr(ops, op_name), case, inputs, only)


def compare(
    op_name: str,
    case: Case,
    backend_name: str,
    dtype: torch.dtype = torch.float32,
    device: str = DEVICE,
) -> None:
    """Hold a backend to the float64 reference on a case: values and every gradient.

    Also: nothing of what is invalid or masked comes through, inputs are left as they were, and
    results have the dtype, device and shape of the reference's.

    Raises:
        AssertionError: with a line for each result that is off, and by how much.
    """
    inputs = build(op_name, case, dtype, device)
    before = {name: tensor.clone() for name, tensor in tensors(inputs)}
    got = run_backend(op_name, inputs, case, backend_name)
    truth = eager(op_name, case, torch.float64)
    yardstick = eager(op_name, case, dtype)
    faults = [
        f"{name}: changed in place"
        for name, tensor in tensors(inputs)
        if not _same(tensor.detach(), before[name])
    ]
    for name, expected in truth.items():
        value = got[name]
        if (value.shape, value.dtype, value.device.type) != (expected.shape, dtype, device):
            faults.append(f"{name}: {value.dtype} {tuple(value.shape)} on {value.device}")
            continue
        double = dtype == torch.float64
        most = DOUBLE_BOUND if double else bound(error(yardstick[name], expected), dtype)
        off = error(value, expected)
        if off > most:
            faults.append(f"{name}: relative error {off:.2e}, bound {most:.2e}")
    faults += _traces(op_name, inputs, got)
    if faults:
        raise AssertionError("\n".join([f"{op_name}, {case.name}, {backend_name}:", *faults]))


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _traces(op_name: str, inputs: Inputs, got: Results) -> list[str]:
    """Results that are not exactly zero where nothing is valid or observed."""
    op = OPS[op_name]
    faults = []
    for name in differentiable(inputs) if op.has_backward else ():
        gradient = got[f"gradient of {name}"]
        entries = hidden(op, inputs, name, gradient)
        if entries is not None and gradient[entries].count_nonzero():
            faults.append(f"gradient of {name}: not zero at what is invalid or masked")
    for k, spec in enumerate(op.outputs.values()):
        if op.is_sequence and "T" in spec:
            output = got[f"output {k}"]
            valid = reference.valid_steps(inputs["lengths"], output.shape[-2])
            if output.masked_select(~valid.unsqueeze(-1)).count_nonzero():
                faults.append(f"output {k}: not zero past the end")
    return faults


def check_gradients(op_name: str, backend_name: str, case: Case = TINY, device: str = DEVICE) -> None:
    """Hold the gradients of a backend that takes float64 to numerical differentiation."""
    inputs = build(op_name, case, torch.float64, device)
    wanted = differentiable(inputs)

    def function(*values: Tensor) -> Any:
        given = iter(values)
        changed: Inputs = {}
        for name, value in inputs.items():
            if isinstance(value, tuple):
                changed[name] = type(value)(*(next(given) for _ in value))
            else:
                changed[name] = next(given) if name in wanted else value
        return getattr(ops, op_name)(**changed)

    with ops.use_backend(backend_name):
        torch.autograd.gradcheck(function, [t.requires_grad_() for t in wanted.values()])


def each_backend(op_name: str) -> pytest.MarkDecorator:
    """Run a test with ``backend`` each of those that compute the op on the tested device in this build."""
    return pytest.mark.parametrize("backend", backends_for(op_name))


def each_backend_and_dtype(op_name: str) -> pytest.MarkDecorator:
    """Run a test with each ``backend`` in each ``dtype`` that it takes."""
    pairs = [(name, dtype) for name in backends_for(op_name) for dtype in dtypes_for(op_name, name)]
    ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=ids)
