"""The choice of a backend: its ops, duration, threads, tasks and compiled graphs."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import dmm_fast
from dmm_fast import ops
from dmm_fast.ops import BACKENDS, BackendError, _backends
from tests.cases import CASES
from tests.compiled import DIFFERENTIABLE
from tests.device import cpu_only
from tests.inputs import build, differentiable

pytestmark = [cpu_only, pytest.mark.usefixtures("no_request")]


# --- the choice holds and ends ------------------------------------------------------------------------


def requested() -> str | dict[str, str] | None:
    return ops.info()["requested"]


@pytest.mark.parametrize("name", ["CPP", "", "numpy", "cpp ", 1, torch.ones(2)])
def test_unknown_name_is_refused_and_changes_nothing(name: Any) -> None:
    ops.use_backend("reference")
    with pytest.raises(ValueError, match=r"^name: expected None or one of reference, .+, got"):
        ops.use_backend(name)
    assert requested() == "reference"


def test_a_call_is_effective_until_the_next() -> None:
    assert requested() is None
    ops.use_backend("triton")
    assert requested() == "triton"
    ops.use_backend("reference")
    assert requested() == "reference"
    ops.use_backend(None)
    assert requested() is None


def test_blocks_nest_and_restore() -> None:
    ops.use_backend("cuda")
    with ops.use_backend("reference"):
        with ops.use_backend(None):
            assert requested() is None
        assert requested() == "reference"
    assert requested() == "cuda"


def test_a_block_restores_after_an_exception() -> None:
    with pytest.raises(KeyError), ops.use_backend("cpp"):
        raise KeyError
    assert requested() is None


def test_a_choice_may_be_for_some_ops() -> None:
    with ops.use_backend("cuda", ops=("rnn_scan", "emitter")):
        assert requested() == {"emitter": "cuda", "rnn_scan": "cuda"}
        assert _backends.chosen("combiner", "cpu") == dmm_fast.info()["ops"]["combiner"]["cpu"]
        with pytest.raises(BackendError, match="rnn_scan on cpu"):
            _backends.chosen("rnn_scan", "cpu")
        with ops.use_backend("reference", ops=["emitter"]):
            assert requested() == {"emitter": "reference", "rnn_scan": "cuda"}
    assert requested() is None


def test_none_hides_an_outer_choice_for_the_ops_named() -> None:
    ops.use_backend("cuda")
    with ops.use_backend(None, ops={"rnn_scan"}):
        assert _backends.chosen("rnn_scan", "cpu") == dmm_fast.info()["ops"]["rnn_scan"]["cpu"]
        others = set(dmm_fast.info()["ops"]) - {"rnn_scan"}
        assert requested() == dict.fromkeys(others, "cuda")
    assert requested() == "cuda"


def test_a_call_replaces_those_of_the_same_or_a_narrower_scope() -> None:
    ops.use_backend("reference")
    ops.use_backend("cuda", ops=["emitter", "combiner"])
    ops.use_backend("cpp", ops=["emitter"])
    with_cpp = requested()
    assert isinstance(with_cpp, dict)
    assert (with_cpp["emitter"], with_cpp["combiner"], with_cpp["rnn_scan"]) == ("cpp", "cuda", "reference")
    ops.use_backend(None, ops=["emitter", "combiner"])
    hidden = requested()
    assert isinstance(hidden, dict)
    assert not {"emitter", "combiner"} & hidden.keys()
    assert hidden["rnn_scan"] == "reference"
    ops.use_backend("triton")
    assert requested() == "triton"


def test_blocks_end_in_any_order() -> None:
    ops.use_backend("cuda")
    first = ops.use_backend("cpp")
    first.__enter__()
    second = ops.use_backend("reference")
    second.__enter__()
    first.__exit__(None, None, None)
    assert requested() == "reference"
    second.__exit__(None, None, None)
    assert requested() == "cuda"


def test_a_call_in_a_block_holds_beyond_it() -> None:
    with ops.use_backend("cpp"):
        ops.use_backend("reference")
        assert requested() == "reference"
    assert requested() == "reference"


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ("rnn_scan", TypeError, r"^ops: expected None or a collection of names of ops, got str 'rnn_scan'$"),
        (7, TypeError, r"^ops: expected None or a collection of names of ops, got int 7$"),
        (torch.tensor(7), TypeError, r"^ops: expected None or a collection .*, got int64 of shape"),
        (
            ["rnn_scan", "rnn"],
            ValueError,
            r"^ops: expected names among .*emitter, .*rnn_scan, .*, got 'rnn'$",
        ),
        ([["rnn_scan"]], ValueError, r"^ops: expected names among .*, got \['rnn_scan'\]$"),
    ],
)
def test_ops_that_do_not_exist_are_refused_and_change_nothing(
    named: Any, error: type[Exception], message: str
) -> None:
    ops.use_backend("reference")
    with pytest.raises(error, match=message):
        ops.use_backend("cpp", ops=named)
    assert requested() == "reference"


def test_a_with_statement_that_does_not_follow_its_call_is_refused() -> None:
    early = ops.use_backend("cpp")
    ops.use_backend("reference")
    with pytest.raises(RuntimeError, match=r"^use_backend: expected a with .* right after .*, got one after"):
        early.__enter__()
    assert requested() == "reference"
    again = ops.use_backend("cpp")
    with again:
        with pytest.raises(RuntimeError, match=r"got a second one$"):
            again.__enter__()
        assert requested() == "cpp"
    with pytest.raises(RuntimeError, match=r"got a second one$"):
        again.__enter__()
    with pytest.raises(RuntimeError, match=r"^use_backend: expected a with statement to end once"):
        again.__exit__(None, None, None)
    assert requested() == "reference"


@pytest.mark.parametrize("scopes", [[None], [["emitter"]], [None, ["emitter"], ["rnn_scan", "emitter"]]])
@pytest.mark.parametrize("in_block", [False, True])
def test_calls_do_not_accumulate(scopes: list[Any], in_block: bool) -> None:
    """Also if narrower scopes follow wider ones that remain in effect for some ops."""
    names = sorted(dmm_fast.info()["ops"])
    scopes = [*scopes, *(names[k:] for k in range(len(names)))]
    with ops.use_backend("cpp") if in_block else ops.use_backend(None):
        for k in range(10_000):
            ops.use_backend(BACKENDS[k % 4], ops=scopes[k % len(scopes)])
    assert len(_backends._held.get()) <= len(names) + 2


# --- the choice is local ------------------------------------------------------------------------------


def test_a_choice_is_of_its_thread() -> None:
    with ops.use_backend("reference"), ThreadPoolExecutor(1) as other:
        assert other.submit(requested).result() is None
        other.submit(ops.use_backend, "cuda").result()
        assert other.submit(requested).result() == "cuda"
        assert requested() == "reference"


def test_a_choice_is_of_its_task_and_of_those_that_the_task_creates() -> None:
    async def child(go_on: asyncio.Event) -> object:
        await go_on.wait()
        return requested()

    async def parent(name: str) -> None:
        go_on = asyncio.Event()
        with ops.use_backend(name):
            created = asyncio.create_task(child(go_on))
            for _ in range(3):
                await asyncio.sleep(0)
                assert requested() == name
        assert requested() == "triton"
        go_on.set()
        assert await created == name

    async def main() -> None:
        ops.use_backend("triton")
        await asyncio.gather(parent("cpp"), parent("reference"))
        assert requested() == "triton"

    asyncio.run(main())
    assert requested() is None


def test_a_block_that_ends_in_another_context_is_refused() -> None:
    async def generator() -> AsyncGenerator[None, None]:
        with ops.use_backend("cpp"):
            yield

    async def main() -> None:
        begun = generator()
        elsewhere = contextvars.copy_context()
        await begun.__anext__()
        with pytest.raises(RuntimeError, match="in the thread and task where it began"):
            await elsewhere.run(asyncio.ensure_future, begun.aclose())

    asyncio.run(main())


@pytest.mark.parametrize("op_name", DIFFERENTIABLE)
def test_a_backward_pass_does_not_depend_on_the_choice(op_name: str) -> None:
    inputs = build(op_name, CASES["small"])
    wanted = differentiable(inputs)
    for tensor in wanted.values():
        tensor.requires_grad_()
    outputs = getattr(ops, op_name)(**inputs)
    loss = sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    with ops.use_backend("cuda"):  # which does not support CPU tensors
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    assert any(grad is not None for grad in grads)


# --- torch.compile --------------------------------------------------------------------------------------


@pytest.fixture
def compiled_double(double_op: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An op that doubles in the reference and triples in C++, in one graph."""
    _backends.register("double", "cpp", lambda x: 3 * x)
    _backends.register("other", "reference", lambda x: x)
    torch._dynamo.reset()
    return torch.compile(double_op, fullgraph=True, backend="eager")


def test_a_compiled_function_follows_the_choice(compiled_double: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(1)
    assert compiled_double(x) == 3
    for _ in range(20):  # more often than torch would recompile
        with ops.use_backend("reference"):
            assert compiled_double(x) == 2
            with ops.use_backend("cpp", ops=["other"]):
                assert compiled_double(x) == 2
            with ops.use_backend(None, ops=["double"]):
                assert compiled_double(x) == 3
        assert compiled_double(x) == 3
    ops.use_backend("reference")
    assert compiled_double(x) == 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(compiled_double, x).result() == 3


def test_a_choice_may_be_made_in_a_compiled_function(double_op: Callable[[Tensor], Tensor]) -> None:
    _backends.register("double", "cpp", lambda x: 3 * x)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def function(x: Tensor) -> Tensor:
        with ops.use_backend("reference", ops=["double"]):
            x = double_op(x)
            with ops.use_backend(None):
                x = double_op(x)
        return double_op(x)

    assert function(torch.ones(1)) == 2 * 3 * 3
    assert requested() is None
    ops.use_backend("reference")
    assert function(torch.ones(1)) == 2 * 3 * 2
    assert requested() == "reference"


def test_a_choice_for_all_ops_also_applies_to_other_functions() -> None:
    assert _backends.may_use("triton")
    with ops.use_backend("reference"):
        assert not _backends.may_use("triton")
        with ops.use_backend("triton"):
            assert _backends.may_use("triton")
        with ops.use_backend("cpp", ops=("rnn_scan",)):
            assert not _backends.may_use("triton")
        with ops.use_backend(None):
            assert _backends.may_use("triton")
    with ops.use_backend("reference", ops=("rnn_scan",)):
        assert _backends.may_use("triton")
