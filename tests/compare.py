"""Runs of an op with its gradients, and comparison of a backend with the float64 reference."""

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
    """The backends of this build that compute the op on the device."""
    able = _backends.candidates(op_name, device, torch.float32)
    return [name for name in ops.BACKENDS if name in able]


def dtypes_for(op_name: str, backend_name: str, device: str = DEVICE) -> list[torch.dtype]:
    """The dtypes, of float32 and float64, that a backend computes the op in."""
    both = (torch.float32, torch.float64)
    return [dtype for dtype in both if backend_name in _backends.candidates(op_name, device, dtype)]


def incoming_gradients(outputs: tuple[Tensor, ...], case: Case) -> list[Tensor | None]:
    """Incoming gradients for the outputs in the memory layout of the case; equal values for every dtype."""
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
    """The inputs an op is differentiated by: None for all, "" for none if it has no gradients."""
    return None if OPS[op_name].has_backward else ""


@lru_cache(maxsize=512)
def eager(op_name: str, case: Case, dtype: torch.dtype) -> Results:
    """The results of eager PyTorch for the case on a CPU; those in float64 are the truth."""
    inputs = build(op_name, case, dtype, "cpu")
    return results(getattr(reference, op_name), case, inputs, differentiated(op_name))


def run_backend(op_name: str, inputs: Inputs, case: Case, name: str, only: str | None = None) -> Results:
    """The results of the public op, computed by the given backend."""
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
    """Compare values and all gradients of a backend with the float64 reference on a case.

    Also check that invalid and masked entries have no effect, that inputs are unchanged, and that results
    have the dtype, device and shape of the reference.

    Raises:
        AssertionError: with a line for each result beyond its bound and its error.
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
    """The results that are not exactly zero at entries that are invalid or not observed."""
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
    """Compare the gradients of a backend that supports float64 with numerical differentiation."""
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
    """Parametrize a test by the backends of this build that compute the op on the tested device."""
    return pytest.mark.parametrize("backend", backends_for(op_name))


def each_backend_and_dtype(op_name: str) -> pytest.MarkDecorator:
    """Parametrize a test by ``backend`` and the ``dtype`` values it supports."""
    pairs = [(name, dtype) for name in backends_for(op_name) for dtype in dtypes_for(op_name, name)]
    ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=ids)
