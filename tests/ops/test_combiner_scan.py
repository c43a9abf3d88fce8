"""The hidden units g of the posterior scans: kept for a backward pass only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dmm_fast import ops
from dmm_fast.reference import previous, valid_steps
from tests.cases import Case
from tests.compare import error
from tests.compiled import OP_BACKENDS, calls_of
from tests.device import DEVICE
from tests.inputs import build, differentiable

OPS = ("combiner_scan", "flow_scan")
CASE = Case("kept", B=5, T=9, Z=3, H=70, particles=(2,), lengths="zeros", poison="nan", start="rows")
# Of its allocations, only g is as large as h.
LARGE = Case("large", B=3, T=4, Z=1, H=64, lengths="ragged")

each_backend = pytest.mark.parametrize(("op", "backend"), [pair for pair in OP_BACKENDS if pair[0] in OPS])


@each_backend
def test_g_is_correct_at_every_step_and_zero_past_the_ends(op: str, backend: str) -> None:
    forward, backward = calls_of(op, CASE, backend)
    given = dict(zip(forward.names, forward.args, strict=True))
    assert given["keep_g"] is True
    z, *_, g = forward.run()
    start = given["z_q_0"].expand(*z.shape[:2], CASE.Z)
    exact = torch.tanh(previous(z, start).double() @ given["w_z"].mT.double() + given["b_z"].double())
    valid = valid_steps(given["lengths"], CASE.T).unsqueeze(-1)
    assert bool((g.masked_select(~valid) == 0).all())
    assert error(torch.where(valid, g, 0.0), torch.where(valid, exact, 0.0).cpu()) < 1e-6
    assert torch.equal(dict(zip(backward.names, backward.args, strict=True))["g"], g)
    *others, empty = forward.run(keep_g=False)
    assert empty.shape == (0,)
    assert empty.dtype == g.dtype
    for with_g, without in zip(forward.run(), others, strict=False):
        assert torch.equal(with_g, without)


def largest_allocation(run: Callable[[], Any]) -> int:
    """The largest single allocation of torch, in bytes."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]
    with profile(activities=activities, profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@each_backend
def test_without_a_gradient_nothing_of_its_size_is_allocated(op: str, backend: str) -> None:
    inputs = build(op, LARGE)
    size = inputs["h"].numel() * inputs["h"].element_size()

    def run() -> None:
        with ops.use_backend(backend):
            getattr(ops, op)(**inputs)

    assert largest_allocation(run) < size
    inputs["h"].requires_grad_()
    assert largest_allocation(run) == size
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert largest_allocation(run) < size


@each_backend
def test_gradients_under_vmap_equal_those_of_single_calls(op: str, backend: str) -> None:
    inputs = build(op, Case("vmap", B=3, T=4, Z=3, H=5, lengths="ragged"))
    h = torch.stack([inputs["h"], inputs["h"].flip(0)]).requires_grad_()

    def loss(h: Tensor) -> Tensor:
        outputs = getattr(ops, op)(**{**inputs, "h": h})
        return sum((output.square().sum() for output in outputs), h.new_zeros(()))

    with ops.use_backend(backend):
        (one_by_one,) = torch.autograd.grad(sum(loss(own) for own in h), h)
        (mapped,) = torch.autograd.grad(torch.vmap(loss)(h).sum(), h)
    assert torch.equal(mapped, one_by_one)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("mode", ["train", "no_grad", "nothing requires a gradient"])
def test_a_compiled_function_keeps_it_for_its_backward_alone(op: str, mode: str) -> None:
    inputs = build(op, CASE)
    for tensor in differentiable(inputs).values():
        tensor.requires_grad_(mode != "nothing requires a gradient")
    kept = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        kept.extend(node.args[-2] for node in graph.graph.nodes if op in str(node.target))
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend=look)
    with torch.set_grad_enabled(mode != "no_grad"):
        outputs = compiled(**inputs)
        expected = getattr(ops, op)(**inputs)
    assert kept == [mode == "train"]
    for output, right in zip(outputs, expected, strict=True):
        assert torch.equal(output, right)
        assert output.requires_grad == (mode == "train")
