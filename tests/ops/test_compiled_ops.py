"""The compiled ops as torch ops: schemas, fakes, autograd, tracing, huge strides."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dmm_fast import _extension, ops
from dmm_fast.ops.schema import OPS
from tests.cases import CASES, SEQUENCE_OPS, Case
from tests.compare import differentiated, eager, error, results, run_backend
from tests.compiled import COMPILED, DIFFERENTIABLE, OP_BACKENDS, calls_of
from tests.device import cpu_only
from tests.inputs import build, differentiable, map_tensors, tensors

pytestmark = pytest.mark.skipif(
    _extension.missing is not None, reason=f"no compiled library: {_extension.missing}"
)


@cpu_only
def test_a_build_with_a_library_has_compiled_ops() -> None:
    assert {"rnn_scan", "combiner_scan"} <= set(COMPILED)


@pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)
def test_schema_fake_and_autograd_agree_with_the_kernels(op_name: str, backend: str) -> None:
    calls = calls_of(op_name, CASES["particles"], backend)
    has_backward = OPS[op_name].has_backward
    assert any(call.name.endswith("_backward") for call in calls) == has_backward, calls
    for call in calls:
        is_differentiated = has_backward and not call.name.endswith("_backward")

        def fresh(tensor: Tensor, wanted: bool = is_differentiated) -> Tensor:
            return tensor.clone().requires_grad_(wanted and tensor.is_floating_point())

        torch.library.opcheck(call.function, tree_map_only(Tensor, fresh, call.args))


@pytest.mark.parametrize("op_name", [op for op in COMPILED if op in DIFFERENTIABLE])
def test_one_graph_holds_the_op_and_its_gradient(op_name: str) -> None:
    case = CASES["primes"]
    public = getattr(ops, op_name)
    inputs = build(op_name, case)
    wanted = differentiable(inputs)
    for tensor in wanted.values():
        tensor.requires_grad_()

    def loss(**given: Any) -> Tensor:
        outputs = public(**given)
        return sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    torch._dynamo.reset()  # one code object for all ops would run into the limit of recompilations
    eager = torch.autograd.grad(loss(**inputs), list(wanted.values()), allow_unused=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    traced = torch.autograd.grad(compiled(**inputs), list(wanted.values()), allow_unused=True)
    for name, a, b in zip(wanted, eager, traced, strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("op_name", COMPILED)
def test_one_graph_serves_other_sizes(op_name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(getattr(ops, op_name), fullgraph=True, dynamic=True, backend="eager")
    for name in ("small", "primes"):
        inputs = build(op_name, CASES[name])
        got, expected = compiled(**inputs), getattr(ops, op_name)(**inputs)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("op_name", [op for op in COMPILED if op in SEQUENCE_OPS])
def test_strides_past_two_to_the_31_are_followed(op_name: str) -> None:
    case = Case("far", B=2, lengths="ragged")
    apart, places = 2**31 + 8, count(step=64)
    # Untouched memory is not resident: only the two ends of this tensor are.
    memory = torch.empty(apart + 1024)

    def move(name: str, tensor: Tensor) -> Tensor:
        if "BT" not in OPS[op_name].inputs.get(name, ""):
            return tensor
        _, T, width = tensor.shape
        assert T * width <= 64
        return memory.as_strided((2, T, width), (apart, width, 1), next(places)).copy_(tensor)

    got = run_backend(op_name, map_tensors(build(op_name, case), move), case, "cpp")
    for name, expected in eager(op_name, case, torch.float64).items():
        assert error(got[name], expected) <= 1e-5, name


def test_the_instruction_set_in_use_is_the_one_that_computes(narrower: str) -> None:
    case = CASES["tutorial"]
    got = run_backend("transition_log_prob", build("transition_log_prob", case), case, "cpp")
    assert _extension.instruction_set() == narrower
    # Only baseline has no fused multiply-add, so its results differ from the others.
    torch.ops.dmm_fast._set_instruction_set("avx2" if narrower == "baseline" else "baseline")
    other = run_backend("transition_log_prob", build("transition_log_prob", case), case, "cpp")
    assert any(not torch.equal(value, other[name]) for name, value in got.items())


def test_an_unavailable_instruction_set_is_refused() -> None:
    before = _extension.instruction_set()
    with pytest.raises(RuntimeError, match=r"name: expected one .*baseline\), got sse9"):
        torch.ops.dmm_fast._set_instruction_set("sse9")
    assert _extension.instruction_set() == before


@pytest.mark.parametrize("op_name", COMPILED)
def test_half_precision_uses_the_reference_unless_the_library_is_requested(op_name: str) -> None:
    case = CASES["small"]
    inputs = build(op_name, case, torch.bfloat16)
    assert all(t.dtype in (torch.bfloat16, torch.int64, torch.bool) for _, t in tensors(inputs))
    results(getattr(ops, op_name), case, inputs, differentiated(op_name))
    with pytest.raises(ops.BackendError, match="cpp"), ops.use_backend("cpp"):
        getattr(ops, op_name)(**build(op_name, case, torch.bfloat16))
