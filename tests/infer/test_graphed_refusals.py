"""Steps that a graph does not support are refused, and a failed capture changes nothing."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from dmm_fast import DMM, BackendError, _extension, check
from dmm_fast.infer import CaptureError, GraphedSVI
from dmm_fast.infer._cuda_graphs import CudaGraphs
from tests.helpers_graph import RecordedGraphs, Run, adam, assert_same_bits
from tests.helpers_model import make_batch, small_dmm


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_graphs": -1}, r"^max_graphs: expected an int from 0, got -1$"),
            ({"warm_up": 0}, r"^warm_up: expected a positive int, got 0$"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, int], message: str) -> None:
        dmm = small_dmm()
        with pytest.raises(ValueError, match=message):
            GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO(), **options)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": 3}, r"^model: expected a function, got int 3$"),
            ({"guide": None}, r"^guide: expected a function, got NoneType None$"),
            ({"optim": torch.optim.Adam}, r"^optim: expected PyroOptim, got type"),
            ({"loss": "trace"}, r"^loss: expected a function, got str 'trace'$"),
            ({"loss_and_grads": 1.0}, r"^loss_and_grads: expected a function, got float 1.0$"),
            ({"gather": (1, 2)}, r"^gather: expected a function, got tuple \(1, 2\)$"),
            ({"max_graphs": "4"}, r"^max_graphs: expected an int from 0, got str '4'$"),
            ({"warm_up": 1.0}, r"^warm_up: expected a positive int, got float 1.0$"),
            ({"overlap": 1}, r"^overlap: expected bool, got int 1$"),
            ({"capturer": 1}, r"^capturer: expected an object with run\(\) and capture\(\), got int 1$"),
        ],
    )
    def test_arguments_of_other_types(self, changes: dict[str, Any], message: str) -> None:
        dmm = small_dmm()
        given = {"model": dmm.model, "guide": dmm.guide, "optim": adam(), "loss": Trace_ELBO()}
        with pytest.raises(TypeError, match=message):
            GraphedSVI(**{**given, **changes})

    def test_arguments_that_model_and_guide_do_not_have(self) -> None:
        dmm = small_dmm()
        svi = GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO(), capturer=RecordedGraphs())
        plain = GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO())
        gathering = GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO(), gather=lambda batch: batch)
        for each, args, kwargs in (
            (svi, [*make_batch(), 0.5, None, None, 1], {}),
            (plain, [*make_batch(), 0.5, None, None, 1], {}),
            (plain, make_batch(), {"factor": 0.5}),
            (gathering, make_batch(), {}),
        ):
            with pytest.raises(TypeError, match=r"^arguments: expected arguments that fit \("):
                each.step(*args, **kwargs)

    def test_an_optimizer_that_is_not_capturable(self) -> None:
        dmm = small_dmm()
        for optim, name in (
            (adam(capturable=False), "ClippedAdam"),
            (pyro.optim.Adam({"lr": 0.1}), "Adam"),
        ):
            pyro.clear_param_store()
            svi = GraphedSVI(dmm.model, dmm.guide, optim, Trace_ELBO(), capturer=RecordedGraphs())
            with pytest.raises(ValueError, match=rf"^optim: expected capturable=True .*, got {name} without"):
                svi.step(*make_batch())

    def test_arguments_of_other_kinds_and_on_two_devices(self) -> None:
        run, batch = Run(RecordedGraphs()), make_batch()
        before = [p.clone() for p in run.dmm.parameters()]
        with pytest.raises(
            TypeError, match=r"^arguments: expected tensors, numbers, strings and None, got list"
        ):
            run.step([1.0])
        with pytest.raises(ValueError, match=r"^arguments: expected tensors on one device, got cpu, meta$"):
            run.step(*batch[:3], batch.mini_batch_seq_lengths.to("meta"))
        assert all(map(torch.equal, run.dmm.parameters(), before))

    def test_a_loss_of_several_numbers(self) -> None:
        def loss(*args: Any) -> tuple[float, float]:
            return 1.0, 2.0

        for capturer in (None, RecordedGraphs()):
            svi = GraphedSVI(lambda: None, lambda: None, adam(), loss, loss, capturer=capturer)
            with pytest.raises(TypeError, match=r"^loss: expected one number, got 2$"):
                svi.step()

    @pytest.mark.parametrize("read", [bool, float], ids=("bool", "float"))
    def test_a_value_that_python_reads(self, read: Callable[[Any], Any]) -> None:
        def model() -> None:
            read(pyro.param("a", torch.ones(())).item())

        svi = GraphedSVI(model, lambda: None, adam(), Trace_ELBO(), capturer=RecordedGraphs())
        with pytest.raises(RuntimeError, match=r"^step: expected no (decision|conversion)"):
            svi.step()

    def test_a_parameter_made_within_a_capture(self) -> None:
        names = iter(("a", "b", "a", "a"))

        def model() -> None:
            pyro.sample("x", dist.Normal(pyro.param(next(names), torch.zeros(())), 1.0), obs=torch.ones(()))

        svi = GraphedSVI(model, lambda: None, adam(), Trace_ELBO(), capturer=RecordedGraphs())
        svi.step()
        with pytest.raises(
            RuntimeError, match=r"^model: expected the parameters of the warm-up, got 1 more$"
        ):
            svi.step()


def test_a_capture_that_fails_changes_nothing_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = RecordedGraphs()
    ours, theirs, batch = Run(graphs), Run(None), make_batch()
    ours.step(*batch)
    theirs.step(*batch)
    gradients = [p.grad for p in ours.dmm.parameters()]

    def fail(*args: Any) -> None:
        raise RuntimeError("no memory")

    before = ours.random
    with monkeypatch.context() as patch:
        patch.setattr(ours.optim, "_optimizer_of", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            ours.step(*batch)
    assert pyro.poutine.util.is_validation_enabled()
    assert [p.grad for p in ours.dmm.parameters()] == gradients
    assert_same_bits(ours, theirs)
    ours.random = before
    assert ours.step(*batch) == theirs.step(*batch)
    assert graphs.captures == 1


class _NoCapture(RecordedGraphs):
    """A capturer whose captures raise."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise self.error


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_an_error_of_a_capture_is_reported_with_its_likely_cause(kind: type[Exception]) -> None:
    error = kind("operation not permitted when stream is capturing\nCompile with more of this.")
    run, batch = Run(_NoCapture(error)), make_batch()
    run.step(*batch)
    with pytest.raises(CaptureError) as caught:
        run.step(*batch)
    assert caught.value.__cause__ is error
    message = str(caught.value)
    assert message.startswith(
        f"step: expected one that a CUDA graph can hold, got {kind.__name__}: "
        "operation not permitted when stream is capturing (likely causes: "
    )
    for cause in ("waits for the GPU", "recreates a parameter", "made on another stream", "del loss"):
        assert cause in message


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, BackendError, ValueError])
def test_a_specific_error_of_a_capture_is_unchanged(kind: type[Exception]) -> None:
    error = kind("this is wrong")
    run, batch = Run(_NoCapture(error)), make_batch()
    run.step(*batch)
    with pytest.raises(kind) as caught:
        run.step(*batch)
    assert caught.value is error


def test_a_hang_that_a_kernel_has_recorded_is_raised_before_the_next_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay launches no op on the host, where a hang is otherwise detected."""
    replays: list[str] = []

    class Graph:
        def pool(self) -> None:
            return None

        def replay(self) -> None:
            replays.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *given, **options: nullcontext())
    replay = CudaGraphs(torch.device("cuda")).capture(lambda: torch.zeros(()))
    replay()

    def hung() -> None:
        raise RuntimeError("block 3 timed out waiting")

    monkeypatch.setattr(_extension, "raise_on_hang", hung)
    with pytest.raises(RuntimeError, match="block 3"):
        replay()
    assert replays == ["replay"]


def test_values_are_checked_in_the_warm_up_and_not_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    dmm, batch = DMM(5, 3, 4, 6, 7, validate_args=True), make_batch()
    x = batch.mini_batch + 0.5
    with pytest.raises(ValueError, match=r"^mini_batch: expected 0 or 1"):
        dmm.mini_batch(x, *batch[1:])
    monkeypatch.setattr(check, "is_capturing", lambda: True)
    dmm.mini_batch(x, *batch[1:])


def test_a_graph_is_for_the_parameters_device_where_there_are_no_tensors() -> None:
    graphs = RecordedGraphs()
    weight = nn.Linear(2, 1)

    def model() -> None:
        pyro.module("linear", weight)
        pyro.sample("x", dist.Normal(weight(torch.ones(2)), 1.0).to_event(1), obs=torch.ones(1))

    svi = GraphedSVI(model, lambda: None, adam(), Trace_ELBO(), capturer=graphs)
    losses = [float(svi.step()) for _ in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert (graphs.runs, graphs.replays) == (1, 5)
