"""Every op at every shape, through every backend that computes it on the tested device in this build."""

from dataclasses import replace

import pytest
import torch

from dmm_fast import ops, triton
from dmm_fast.ops.schema import OPS
from tests.cases import CASES, SEQUENCE_OPS, TINY
from tests.compare import backends_for, check_gradients, compare, dtypes_for, error, run_backend
from tests.compiled import COMPILED, DIFFERENTIABLE, OTHER_DENSITIES
from tests.inputs import build, differentiable

OP_BACKENDS = [(op, backend) for op in OPS for backend in backends_for(op)]
OP_BACKEND_DTYPES = [(*pair, dtype) for pair in OP_BACKENDS for dtype in dtypes_for(*pair)]
each_op = pytest.mark.parametrize(
    ("op_name", "backend"),
    [pair for pair in OP_BACKENDS if not (triton.INTERPRETED and pair[0] in OTHER_DENSITIES)],
)
each_op_in_each_dtype = pytest.mark.parametrize(
    ("op_name", "backend", "dtype"),
    OP_BACKEND_DTYPES,
    ids=[f"{op}-{backend}-{str(dtype).removeprefix('torch.')}" for op, backend, dtype in OP_BACKEND_DTYPES],
)


@pytest.mark.parametrize("case_name", CASES)
@each_op_in_each_dtype
def test_backend_is_as_accurate_as_eager_pytorch(
    op_name: str, backend: str, dtype: torch.dtype, case_name: str
) -> None:
    compare(op_name, CASES[case_name], backend, dtype)


@pytest.mark.usefixtures("narrower")
@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op_name", COMPILED)
def test_so_is_the_library_on_narrower_instruction_sets(
    op_name: str, dtype: torch.dtype, case_name: str
) -> None:
    compare(op_name, CASES[case_name], "cpp", dtype)


@pytest.mark.parametrize(
    ("op_name", "backend"),
    [(op, b) for op, b, dtype in OP_BACKEND_DTYPES if op in DIFFERENTIABLE and dtype == torch.float64],
)
def test_gradients_equal_numerical_ones(op_name: str, backend: str) -> None:
    check_gradients(op_name, backend, TINY)
    if op_name == "rnn_scan":
        check_gradients(op_name, backend, replace(TINY, nonlinearity="tanh", direction="forward"))


# Interpreted, the larger case would take minutes of all the tests' time.
@pytest.mark.parametrize("case_name", ["particles"] if triton.INTERPRETED else ["particles", "primes"])
@each_op
def test_the_gradient_of_one_input_equals_its_part_of_all(op_name: str, backend: str, case_name: str) -> None:
    case = CASES[case_name]
    inputs = build(op_name, case)
    names = list(differentiable(inputs)) if op_name in DIFFERENTIABLE else []
    of_all = run_backend(op_name, inputs, case, backend)
    for name in names:
        of_one = run_backend(op_name, build(op_name, case), case, backend, only=name)
        key = f"gradient of {name}"
        assert error(of_one[key], of_all[key].double()) <= 1e-6
        assert of_one.keys() == {key} | {k for k in of_all if k.startswith("output")}


@each_op
def test_without_gradients_there_is_no_graph(op_name: str, backend: str) -> None:
    case = CASES["particles"]
    inputs = build(op_name, case)
    with ops.use_backend(backend):
        without = getattr(ops, op_name)(**inputs)
        for tensor in differentiable(inputs).values():
            tensor.requires_grad_()
        attached = getattr(ops, op_name)(**inputs)
        with torch.no_grad():
            detached = getattr(ops, op_name)(**inputs)
    for a, b, c in zip(
        *(t if isinstance(t, tuple) else (t,) for t in (without, attached, detached)), strict=True
    ):
        assert not a.requires_grad
        assert b.requires_grad or op_name not in DIFFERENTIABLE
        assert not c.requires_grad
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("case_name", ["tutorial", "many_rows"])
@each_op
def test_a_repeated_call_is_bitwise_equal(op_name: str, backend: str, case_name: str) -> None:
    torch.use_deterministic_algorithms(True)
    case = CASES[case_name]
    first, second = (run_backend(op_name, build(op_name, case), case, backend) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("particles", [(), (2,)], ids=["", "particles"])
@each_op
def test_empty_batches_have_empty_results_and_zero_gradients(
    op_name: str, backend: str, particles: tuple[int, ...]
) -> None:
    case = replace(CASES["small"], name="no_rows", B=0, particles=particles, mask="dims")
    got = run_backend(op_name, build(op_name, case), case, backend)
    of_one_row = run_backend(op_name, build(op_name, replace(case, B=1)), replace(case, B=1), backend)
    for name, value in got.items():
        assert value.count_nonzero() == 0, name
        if name.startswith("output"):
            shape = list(of_one_row[name].shape)
            shape[len(particles)] = 0
            assert list(value.shape) == shape


@pytest.mark.parametrize(("op_name", "backend"), [pair for pair in OP_BACKENDS if pair[0] in SEQUENCE_OPS])
def test_rows_without_steps_are_zero(op_name: str, backend: str) -> None:
    case = replace(CASES["empty_rows"], name="no_steps", B=1)
    for name, value in run_backend(op_name, build(op_name, case), case, backend).items():
        assert value.count_nonzero() == 0, name
