"""Weight gradients on a side stream, and steps that are captured without one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dmm_fast.infer import GraphedSVI, _graphed_svi
from dmm_fast.infer._cuda_graphs import CudaGraphs
from dmm_fast.triton import side_stream
from tests.helpers_graph import adam
from tests.helpers_streams import Launch, Order, SteppedBeside, Wait, races

SCRATCH: list[StorageWeakRef] = []


class _Linear(torch.autograd.Function):
    """A layer whose weight gradient is computed on the side stream if possible."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        scratch, dw = dout.clone(), torch.empty_like(w)
        SCRATCH.append(StorageWeakRef(scratch.untyped_storage()))
        side = side_stream.side_stream_of(x)
        with nullcontext() if side is None else side.launches([scratch, x], [dw]):
            torch.mm(scratch.mT, x, out=dw)
        return dout @ w, dw


class Chain(nn.Module):
    """A model of sequential layers, without latents."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def mean(self, x: Tensor) -> Tensor:
        for w in map(self.made_of, self.weights):
            x = _Linear.apply(x, w)
        return x

    @staticmethod
    def made_of(weight: Tensor) -> Tensor:
        return weight

    def model(self, x: Tensor) -> None:
        pyro.module("chain", self)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(self.mean(x), 1.0).to_event(1), obs=torch.ones_like(x))


def weights(count: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(6, 6, generator=generator) / 3.0) for _ in range(count)]


X = torch.arange(24.0).view(4, 6) / 10.0


def stepped(chain: Chain, order: Order, loss_and_grads: Any = None) -> SteppedBeside:
    """A warm-up and a captured step."""
    loss: Any = Trace_ELBO() if loss_and_grads is None else Trace_ELBO().loss
    capturer = SteppedBeside(order, nullcontext)
    svi = GraphedSVI(chain.model, lambda x: None, adam(), loss, loss_and_grads, capturer=capturer)
    for _ in range(2):
        svi.step(X)
    return capturer


def assert_as_plain(chain: Chain, again: Chain) -> None:
    """Assert that the parameters after two steps equal bitwise those of ``again`` after two plain steps."""
    with pyro.get_param_store().scope():
        svi = SVI(again.model, lambda x: None, adam(), Trace_ELBO())
        for _ in range(2):
            svi.step(X)
    assert all(map(torch.equal, chain.parameters(), again.parameters()))


def test_gradients_of_the_side_stream_become_those_of_the_parameters() -> None:
    chain, order = Chain(*weights()), Order()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capturer = stepped(chain, order)
    assert capturer.captures == 1
    assert [type(e) for e in order.events if "side" in (e.stream, getattr(e, "other", ""))].count(Wait) == 4
    assert sum(isinstance(e, Launch) and e.stream == "side" for e in order.events) == 3
    assert races(order.events) == []
    assert_as_plain(chain, Chain(*weights()))


def hooked(chain: Chain) -> None:
    chain.weights[0].register_hook(lambda grad: None)


def hooked_behind(chain: Chain) -> None:
    chain.weights[0].register_post_accumulate_grad_hook(lambda param: None)


def hooked_at_the_node(chain: Chain) -> None:
    node: Any = torch.autograd.graph.get_gradient_edge(chain.weights[0]).node

    def read(grads: Any) -> None:
        grads[0].norm()

    node.register_prehook(read)
    chain.node = node  # type: ignore[assignment]  # autograd does not keep it alive


def frozen(chain: Chain) -> None:
    chain.made_of = lambda w: w if w is chain.weights[0] else w.detach()  # type: ignore[method-assign]


def tied(chain: Chain) -> None:
    chain.weights[1] = chain.weights[0]


def parametrized(chain: Chain) -> None:
    chain.made_of = lambda w: w.tanh()  # type: ignore[method-assign]


REFUSED: dict[str, tuple[Callable[[Chain], None], str]] = {
    "a hook": (hooked, "a parameter has hooks"),
    "a hook behind the accumulation": (hooked_behind, "a parameter has hooks"),
    "a hook at the node": (hooked_at_the_node, r"aten\.linalg_vector_norm\.default reads a gradient before"),
    "a frozen weight": (frozen, ".*a gradient (before|is not adopted by a parameter)"),
    "a weight used twice": (tied, r"aten\.add_?\.Tensor reads a gradient before"),
    "a weight made of another": (parametrized, r"aten\.tanh_backward\.default reads a gradient before"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_gradient_that_is_used_earlier_is_captured_without(case: str) -> None:
    change, message = REFUSED[case]
    chain, again, order = Chain(*weights()), Chain(*weights()), Order()
    change(chain)
    change(again)
    with pytest.warns(RuntimeWarning, match=f"^overlap: the step is captured without it: {message}"):
        capturer = stepped(chain, order)
    assert capturer.captures == 2
    last = [i for i, each in enumerate(order.events) if "side" in (each.stream, getattr(each, "other", ""))][
        -1
    ]
    assert isinstance(order.events[last], Wait)
    assert any(isinstance(each, Launch) for each in order.events[last:])  # the whole step, on the main stream
    assert_as_plain(chain, again)


@pytest.mark.parametrize("reading", [True, False])
def test_a_loss_that_reads_or_makes_gradients_twice_is_captured_without(reading: bool) -> None:
    elbo = Trace_ELBO()

    def loss_and_grads(model: Any, guide: Any, x: Tensor) -> Any:
        loss = elbo.loss_and_grads(model, guide, x)
        if reading:
            chain.weights[0].grad.norm()
        else:
            elbo.loss_and_grads(model, guide, x)
        return loss

    chain = Chain(*weights())
    with pytest.warns(RuntimeWarning, match="^overlap: .* reads a gradient before all are complete$"):
        assert stepped(chain, Order(), loss_and_grads).captures == 2


@contextmanager
def beside(chain: Chain, order: Order) -> Iterator[None]:
    """A backward pass with a side stream, and the launches after it."""
    with (
        patch.object(side_stream, "_current_stream", lambda tensor: order.current),
        side_stream.beside(order.main, order.side, order.enter),
    ):
        chain.mean(X).sum().backward()
        yield


def test_operands_of_gradients_are_kept_until_they_are_computed() -> None:
    SCRATCH.clear()
    chain = Chain(*weights())
    with beside(chain, Order()):
        assert [each.expired() for each in SCRATCH] == 3 * [False]
        side_stream.join(list(chain.parameters()))
        assert [each.expired() for each in SCRATCH] == 3 * [True]


def test_operands_of_a_gradient_must_not_change() -> None:
    chain = Chain(*weights(2))

    def change() -> None:
        with beside(chain, Order()), torch.no_grad():
            X.mul_(1.0)
            side_stream.join(list(chain.parameters()))

    with pytest.raises(side_stream.OverlapError, match=r"^aten.mul_.Tensor changes an input of a gradient"):
        change()


def test_streams_are_joined_when_a_step_raises() -> None:
    order = Order()

    def fail() -> None:
        with beside(Chain(*weights()), order):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert order.events[-1] == Wait("main", "side")
    assert not side_stream._open


def test_a_step_that_does_not_join_is_refused() -> None:
    order = Order()

    def forget() -> None:
        with beside(Chain(*weights()), order):
            pass

    with pytest.raises(side_stream.OverlapError, match="is not adopted by a parameter"):
        forget()
    assert order.events[-1] == Wait("main", "side")


def test_a_stream_that_was_not_forked_is_not_joined() -> None:
    """Within a capture that would be an error, as the other stream is not part of it."""
    order = Order()
    current = patch.object(side_stream, "_current_stream", lambda tensor: order.current)
    with current, side_stream.beside(order.main, order.side, order.enter):
        side_stream.join(weights())
    assert order.events == []


class TestCudaGraphs:
    """With stand-ins for everything that needs a GPU."""

    @pytest.fixture
    def order(self, monkeypatch: pytest.MonkeyPatch) -> Order:
        order = Order()

        @contextmanager
        def graph(*given: Any, **options: Any) -> Iterator[None]:
            assert options["stream"] is order.main
            try:
                yield
            finally:
                order.launch("end of capture", [], [])

        class Graph:
            def pool(self) -> None:
                return None

        streams = {(-1,): order.main, (): order.side}  # by priority; the default is the lowest
        monkeypatch.setattr(torch.cuda, "Stream", lambda device, *priority: streams[priority])
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "stream", order.enter)
        monkeypatch.setattr(side_stream, "_current_stream", lambda tensor: order.current)
        return order

    @pytest.mark.parametrize("fails", [False, True])
    def test_streams_are_joined_before_the_capture_ends(self, fails: bool, order: Order) -> None:
        chain = Chain(*weights())

        def step() -> Tensor:
            chain.mean(X).sum().backward()
            if fails:
                raise KeyError
            side_stream.join(list(chain.parameters()))
            return torch.zeros(())

        graphs = CudaGraphs(torch.device("cuda"), overlap=True)
        with pytest.raises(KeyError) if fails else nullcontext():
            graphs.capture(step)
        assert order.events[-2:] == [Wait("main", "side"), Launch("end of capture", "main", [], [])]
        assert order.events.count(Wait("side", "main")) == 3

    def test_a_step_that_cannot_overlap_is_captured_again(self, order: Order) -> None:
        chain, forks = Chain(*weights()), []

        def step() -> Tensor:
            for weight in chain.parameters():
                weight.grad = None
            before = order.events.count(Wait("side", "main"))
            (chain.mean(X) + chain.mean(X)).sum().backward()
            forks.append(order.events.count(Wait("side", "main")) - before)
            side_stream.join(list(chain.parameters()))
            return torch.zeros(())

        with pytest.warns(RuntimeWarning, match=r"^overlap: .* aten\.add"):
            CudaGraphs(torch.device("cuda"), overlap=True).capture(step)
        assert forks == [6, 0]

    def test_without_the_option_there_is_no_side_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda *given: made.append(given))
        CudaGraphs(torch.device("cuda"))
        assert made == [(torch.device("cuda"),)]


def test_the_option_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_graphed_svi, "CudaGraphs", lambda device, overlap: asked.append(overlap))

    class OnGpu(Tensor):
        is_cuda = True  # type: ignore[assignment]

    x = X.as_subclass(OnGpu)
    for options in ({}, {"overlap": True}):
        svi = GraphedSVI(Chain().model, lambda x: None, adam(), Trace_ELBO(), **options)
        svi._capturer_for([((x,), {})])
    assert asked == [False, True]
