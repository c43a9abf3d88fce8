"""The compiled ops as torch sees them: schemas, fakes, autograd, tracing, threads, huge strides."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dmm_fast import native, ops, reference
from tests.cases import CASES, OPS
from tests.compare import backends_for, dtypes_for, results, run_backend
from tests.inputs import build, differentiable, tensors

pytestmark = pytest.mark.skipif(native.missing is not None, reason=f"no compiled library: {native.missing}")

COMPILED = [op for op in OPS if "cpp" in backends_for(op)]
LIBRARIES = {"cpp": "dmm_fast", "triton": "dmm_fast_triton"}
OP_LIBRARIES = [(op, backend) for op in OPS for backend in backends_for(op) if backend in LIBRARIES]


class _Calls(TorchDispatchMode):
    """Keeps every call of a compiled op, C++ or Triton."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in LIBRARIES.values():
            self.seen[func] = args
        return func(*args, **(kwargs or {}))


def test_a_build_with_a_library_has_compiled_ops() -> None:
    assert {"rnn_scan", "combiner_scan"} <= set(COMPILED)


@pytest.mark.parametrize(("op_name", "backend"), OP_LIBRARIES)
def test_schema_fake_and_autograd_agree_with_the_kernels(op_name: str, backend: str) -> None:
    case, dtype = CASES["particles"], dtypes_for(op_name, backend)[-1]
    with _Calls() as calls:
        run_backend(op_name, build(op_name, case, dtype), case, backend)
    assert {func.namespace for func in calls.seen} == {LIBRARIES[backend]}
    names = {str(func).split(".")[1] for func in calls.seen}
    assert any(name.endswith("_backward") for name in names), names
    for func, args in calls.seen.items():
        is_forward = not str(func).split(".")[1].endswith("_backward")

        def fresh(tensor: Tensor, wanted: bool = is_forward) -> Tensor:
            return tensor.detach().clone().requires_grad_(wanted and tensor.is_floating_point())

        torch.library.opcheck(func, tree_map_only(Tensor, fresh, args))


@pytest.mark.parametrize("op_name", COMPILED)
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


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("op_name", COMPILED)
def test_any_number_of_threads_gives_the_same_result(op_name: str, count: int) -> None:
    case = CASES["primes"]
    torch.set_num_threads(1)
    alone = run_backend(op_name, build(op_name, case, torch.float64), case, "cpp")
    torch.set_num_threads(count)
    together = run_backend(op_name, build(op_name, case, torch.float64), case, "cpp")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-12, atol=1e-13, msg=name)


def test_strides_past_two_to_the_31_are_followed() -> None:
    far, T, H = 2**31 + 8, 3, 5
    # Memory that is never touched is never there: only the two ends of this are.
    memory = torch.empty(far + T * H)
    x_proj = memory.as_strided((2, T, H), (far, H, 1))
    x_proj.copy_(torch.randn(2, T, H))
    w_hh, h_0, lengths = torch.randn(H, H) / 3, torch.randn(H), torch.tensor([T, T - 1])
    with ops.use_backend("cpp"):
        h = ops.rnn_scan(x_proj, w_hh, h_0, lengths)
    torch.testing.assert_close(h, reference.rnn_scan(x_proj, w_hh, h_0, lengths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_proj": torch.zeros(2, 3, 5)},
            r"x_proj: expected Float or Double of 4 dim.*got Float of shape \(2, 3, 5\)",
        ),
        ({"x_proj": torch.zeros(1, 2, 3, 5, dtype=torch.int64)}, "x_proj: expected Float or Double"),
        (
            {"w_hh": torch.zeros(5, 4)},
            r"w_hh: expected Float of shape \(5, 5\) on cpu, got Float of shape \(5, 4\)",
        ),
        ({"w_hh": torch.zeros(5, 5).double()}, r"w_hh: expected Float of shape \(5, 5\) on cpu, got Double"),
        ({"h_0": torch.zeros(2, 5)}, r"h_0: expected Float of shape \(1, 2, 5\)"),
        ({"lengths": torch.tensor([3, 4])}, "lengths: expected values between 0 and T = 3, got 4 in row 1"),
        ({"lengths": torch.tensor([-1, 2])}, "lengths: expected values between 0 and T = 3, got -1 in row 0"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths: expected Long of shape"),
        ({"nonlinearity": "gelu"}, "nonlinearity: expected relu or tanh, got gelu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_library_checks_before_it_touches_memory(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "x_proj": torch.zeros(1, 2, 3, 5),
        "w_hh": torch.zeros(5, 5),
        "h_0": torch.zeros(1, 2, 5),
        "lengths": torch.tensor([3, 1]),
        "nonlinearity": "relu",
    }
    torch.ops.dmm_fast.rnn_scan(*good.values())
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dmm_fast.rnn_scan(*(good | change).values())


@pytest.mark.parametrize("op_name", COMPILED)
def test_half_precision_goes_to_the_reference_unless_the_library_is_asked_for(op_name: str) -> None:
    case = CASES["small"]
    inputs = build(op_name, case, torch.bfloat16)
    assert all(t.dtype in (torch.bfloat16, torch.int64, torch.bool) for _, t in tensors(inputs))
    results(getattr(ops, op_name), case, inputs)
    with pytest.raises(ops.BackendError, match="cpp"), ops.use_backend("cpp"):
        getattr(ops, op_name)(**build(op_name, case, torch.bfloat16))
