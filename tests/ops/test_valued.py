"""The backward ops that also return the value, compared with the reference for every backend."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmarks.errors import bound, evaluate
from benchmarks.errors import relative_error as error
from dmm_fast import reference, triton
from dmm_fast.ops._layout import Layout
from dmm_fast.ops.schema import OPS, WEIGHTS
from tests.cases import CASES, Case
from tests.compare import DOUBLE_BOUND, backends_for, dtypes_for, incoming_gradients
from tests.device import DEVICE
from tests.inputs import Inputs, build, hidden, map_tensors

OP_BACKENDS = [
    (name, backend)
    for name, op in OPS.items()
    if op.valued
    for backend in backends_for(name)
    if backend != "reference"
]

# Interpreted, kernels take their time: one row, one step, ragged rows and some without a step, with NaN under
# masks, sliced inputs and strided gradients.
OF_INTERPRETED = ("one_row", "one_step", "primes", "particles")


def cases_for(backend: str) -> Iterable[str]:
    """The names of the cases for a backend."""
    return OF_INTERPRETED if backend == "triton" and triton.INTERPRETED else CASES


RUNS = [
    (name, backend, dtype, case)
    for name, backend in OP_BACKENDS
    for dtype in dtypes_for(name, backend)
    for case in cases_for(backend)
]


class Call(NamedTuple):
    """The arguments of a compiled op in its own layout: by name, and as its backward op takes them."""

    inputs: Inputs
    dout: Tensor
    given: list[Any]


def call_of(op_name: str, case: Case, backend: str, dtype: torch.dtype = torch.float32) -> Call:
    """The arguments of a case, with an incoming gradient ``[P, B]``."""
    op, inputs = OPS[op_name], build(op_name, case, dtype)
    given, lead = Layout(op).flatten(tuple(inputs.values()), full_starts=backend == "cpp")
    values = dict(zip(inputs, op.forward.group([*given, backend]), strict=False))
    for argument in op.arguments:
        if argument.kind == "weights":
            values[argument.name] = WEIGHTS[argument.dims].tuple_type(*values[argument.name])
    shape = torch.empty(lead[:-1].numel(), lead[-1], dtype=dtype, device=DEVICE)
    (dout,) = incoming_gradients((shape,), case)
    assert dout is not None
    return Call(values, dout, given)


def backward(op_name: str, call: Call, backend: str, **flags: bool) -> dict[str, Tensor]:
    """The results of the backward op by name; those without a flag are always computed."""
    signature = OPS[op_name].backward
    wanted = [flags.get(each.name, True) for each in signature.arguments if each.kind == "flag"]
    function = getattr(torch.ops.dmm_fast, signature.name)
    made = function(call.dout, *call.given, *wanted, backend)
    return dict(zip((each.name for each in signature.flat_results), made, strict=True))


def expected(op_name: str, call: Call, dtype: torch.dtype) -> list[Tensor]:
    """The results of the reference on a CPU, in the order of the backward op's results."""

    def leaf(_: str, tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype)

    inputs = map_tensors(call.inputs, leaf)
    (out,), gradients = evaluate(getattr(reference, op_name), inputs, lambda outputs: [leaf("", call.dout)])
    return [*gradients.values(), out]


@pytest.mark.parametrize(
    ("op_name", "backend", "dtype", "case_name"),
    RUNS,
    ids=[f"{op}-{backend}-{str(dtype).removeprefix('torch.')}-{case}" for op, backend, dtype, case in RUNS],
)
def test_value_and_gradients_are_as_accurate_as_eager_pytorch(
    op_name: str, backend: str, dtype: torch.dtype, case_name: str
) -> None:
    call = call_of(op_name, CASES[case_name], backend, dtype)
    got = backward(op_name, call, backend)
    truth, eager = (expected(op_name, call, each) for each in (torch.float64, dtype))
    for (name, value), true, near in zip(got.items(), truth, eager, strict=True):
        assert (value.shape, value.dtype, value.device.type) == (true.shape, dtype, DEVICE), name
        most = DOUBLE_BOUND if dtype == torch.float64 else bound(error(near, true), dtype)
        assert error(value, true) <= most, name
        entries = hidden(OPS[op_name], call.inputs, name.removeprefix("d"), value)
        assert entries is None or not value[entries].count_nonzero(), name


@pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)
def test_unrequested_results_are_empty_and_do_not_affect_others(op_name: str, backend: str) -> None:
    call = call_of(op_name, CASES["empty_rows"], backend)
    of_all = backward(op_name, call, backend)
    value = getattr(torch.ops.dmm_fast, op_name)(*call.given, backend)
    assert error(of_all["out"], value.double()) <= 4 * torch.finfo(torch.float32).eps
    flags = [argument.name for argument in OPS[op_name].backward.arguments if argument.kind == "flag"]
    assert flags[-1] == "with_out"
    for wanted in product((True, False), repeat=len(flags)):
        given = dict(zip(flags, wanted, strict=True))
        made = of_all if all(wanted) else backward(op_name, call, backend, **given)
        for name, result in made.items():
            if given.get(f"with_{name}", True):
                assert torch.equal(result, of_all[name]), (given, name)
            else:
                assert result.shape == (0,), (given, name)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = backward(op_name, call, backend, **given)
        assert {n: fake.shape for n, fake in fakes.items()} == {n: t.shape for n, t in made.items()}


@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}], ids=["no_row", "no_step"])
@pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)
def test_without_valid_steps_value_and_gradients_are_zero(
    op_name: str, backend: str, sizes: dict[str, int]
) -> None:
    case = replace(CASES["small"], name="nothing", **sizes)
    got = backward(op_name, call_of(op_name, case, backend), backend)
    assert got["out"].shape == (1, case.B)
    assert not any(result.count_nonzero() for result in got.values())
