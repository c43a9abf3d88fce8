"""Several steps in one graph are bitwise equal to single steps.

Graphs are simulated on the CPU by :class:`tests.helpers_graph.RecordedGraphs`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from dmm_fast.infer import CaptureError, GraphedSVI
from tests.helpers_graph import RecordedGraphs, Run, adam, assert_same_bits, set_rates
from tests.helpers_model import make_batch, small_dmm
from tests.infer.test_graphed_changes import hook_a_parameter, replace_module, set_a_number

SHAPES = ((6, 2, 1, 5), (3, 3), (4, 1, 2, 6), (3, 3))
"""Lengths of one batch after another, of several numbers of sequences and of time steps."""


def batches(first: int, number: int) -> list[tuple[Any, ...]]:
    """The arguments of ``number`` steps from ``first`` on, each with its own annealing factor."""
    return [
        (*make_batch(SHAPES[i % len(SHAPES)], seed=i), 0.1 + 0.03 * i) for i in range(first, first + number)
    ]


def steps(run: Run, given: list[tuple[Any, ...]], **kwargs: Any) -> list[float]:
    svi = run.svi
    assert isinstance(svi, GraphedSVI)
    losses = run.within(lambda: svi.steps(given, **kwargs))
    assert (losses.dtype, losses.shape, losses.requires_grad) == (torch.float64, (len(given),), False)
    return [float(loss) for loss in losses]


def one_by_one(run: Run, given: list[tuple[Any, ...]], **kwargs: Any) -> list[float]:
    return [run.step(*each, **kwargs) for each in given]


@pytest.mark.parametrize("number", [1, 2, 4])
def test_they_equal_bitwise_single_steps(number: int) -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(4):
        if i == 3:
            for run in (ours, theirs):
                set_rates(run.optim, 0.02)
        given = batches(4 * i, number)
        assert steps(ours, given) == one_by_one(theirs, given)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (1, 1, 3)


def test_dropout_draws_on_from_step_to_step() -> None:
    layers = {"num_layers": 2, "rnn_dropout_rate": 0.5}
    ours, theirs = Run(RecordedGraphs(), **layers), Run(None, **layers)
    for i in range(3):
        given = batches(4 * i, 3)
        assert steps(ours, given) == one_by_one(theirs, given)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"max_graphs": 0}])
def test_on_a_cpu_they_are_plain_steps(options: dict[str, int]) -> None:
    ours, theirs = Run(None), Run(None)
    capturer = RecordedGraphs() if options else None
    ours.svi = GraphedSVI(
        ours.dmm.model, ours.dmm.guide, ours.optim, Trace_ELBO(), capturer=capturer, **options
    )
    given = batches(0, 3)
    assert steps(ours, given) == one_by_one(theirs, given)
    assert_same_bits(ours, theirs)
    assert not ours.svi._kept


def test_they_can_be_mixed_with_single_steps() -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(3):
        given = batches(4 * i, 4)
        expected = one_by_one(theirs, given)
        told = [*steps(ours, given[:2]), ours.step(*given[2]), *steps(ours, [list(given[3])])]
        assert told == expected
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures) == (3, 3)
    assert ours.step(*batches(3, 1)[0]) == theirs.step(*batches(3, 1)[0])
    assert (graphs.runs, graphs.captures) == (3, 3)


def test_arguments_with_names_equal_those_of_all_steps() -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(3):
        given = [each[:-1] for each in batches(4 * i, 2)]
        factor = 0.2 + 0.1 * i
        expected = one_by_one(theirs, given, annealing_factor=factor)
        assert steps(ours, given, annealing_factor=factor) == expected
    assert (graphs.runs, graphs.captures) == (1, 1)


def test_other_numbers_and_orders_of_shapes_have_graphs_of_their_own() -> None:
    graphs = RecordedGraphs()
    run = Run(graphs)
    a, b, *_ = batches(0, 2)
    for number, given in enumerate(([a, b], [b, a], [a, b, a], [a], [a, (*b[:-1], 1)]), 1):
        steps(run, given)
        assert graphs.runs == number
    steps(run, [a, (*b[:-1], 0.9)])
    assert (graphs.runs, graphs.captures) == (5, 1)


def moved(run: Run) -> None:
    for p in run.dmm.parameters():
        p.data = p.data + 0.01


def number_as_rate(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] = 0.03


@pytest.mark.parametrize("change", [replace_module, set_a_number, hook_a_parameter, moved, number_as_rate])
def test_a_change_starts_over(change: Callable[[Run], None]) -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(6):
        if i == 3:
            for run in (ours, theirs):
                run.within(partial(change, run))
        given = batches(4 * i, 2)
        assert steps(ours, given) == one_by_one(theirs, given)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 4)


@pytest.mark.parametrize("seconds", ["aaab", "baaa", "abab"])
def test_a_parameter_unused_in_some_of_them_behaves_as_with_pyro(seconds: str) -> None:
    def model(x: Tensor, second: bool) -> None:
        loc = pyro.param("a", torch.zeros(3))
        other = pyro.param("b", torch.ones(3))
        pyro.sample("x", dist.Normal(loc + other if second else loc, 1.0).to_event(1), obs=x)

    def run(make: Callable[..., Any]) -> tuple[list[float], dict[str, Tensor]]:
        pyro.clear_param_store()
        svi = make(model, lambda *args: None, adam(), Trace_ELBO())
        losses: list[float] = []
        for i in range(4):
            given = [(torch.full((3,), float(i + j)), which == "b") for j, which in enumerate(seconds)]
            if isinstance(svi, GraphedSVI):
                losses += svi.steps(given).tolist()
            else:
                losses += [svi.step(*each) for each in given]
        return losses, {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}

    ours, theirs = run(partial(GraphedSVI, capturer=RecordedGraphs())), run(SVI)
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys() == {"a", "b"}
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in ours[1])


class TestRefusals:
    """Refusals before the first step."""

    @pytest.fixture(params=[True, False], ids=["graphed", "plain"])
    def run(self, request: pytest.FixtureRequest) -> Run:
        run = Run(RecordedGraphs())
        if not request.param:
            run.svi = GraphedSVI(run.dmm.model, run.dmm.guide, run.optim, Trace_ELBO())
        return run

    @pytest.mark.parametrize(
        ("given", "kind", "message"),
        [
            ([], ValueError, "the arguments of at least one step, got none"),
            (None, TypeError, "the arguments of each step, a tuple each, got NoneType None"),
            (torch.ones(2, 3), TypeError, "the arguments of each step, a tuple each, got float32 of shape"),
            (
                [make_batch(), None],
                TypeError,
                "the arguments of each step, a tuple each, got one that is None",
            ),
            ([{"x": 1}], TypeError, "the arguments of each step, a tuple each, got one that is dict"),
        ],
    )
    def test_batches_of_other_kinds(self, run: Run, given: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=rf"^batches: expected {message}"):
            steps(run, given)

    def test_arguments_that_the_model_does_not_have(self, run: Run) -> None:
        before = [p.clone() for p in run.dmm.parameters()]
        with pytest.raises(TypeError, match=r"^arguments: expected arguments that fit \("):
            steps(run, [make_batch(), (*make_batch(), 0.5, None, None, 1)])
        assert all(map(torch.equal, run.dmm.parameters(), before))

    def test_arguments_that_no_graph_supports(self) -> None:
        run, batch = Run(RecordedGraphs()), make_batch()
        before = [p.clone() for p in run.dmm.parameters()]
        meta = (*batch[:3], batch.mini_batch_seq_lengths.to("meta"))
        with pytest.raises(ValueError, match=r"^arguments: expected tensors on one device, got cpu, meta$"):
            steps(run, [batch, meta])
        with pytest.raises(TypeError, match=r"^arguments: expected tensors, numbers, strings and None"):
            steps(run, [batch, ([1.0],)])
        assert all(map(torch.equal, run.dmm.parameters(), before))

    def test_a_parameter_made_within_a_capture(self) -> None:
        names = iter(("a", "a", "a", "b"))

        def model() -> None:
            pyro.sample("x", dist.Normal(pyro.param(next(names), torch.zeros(())), 1.0), obs=torch.ones(()))

        svi = GraphedSVI(model, lambda: None, adam(), Trace_ELBO(), capturer=RecordedGraphs())
        svi.steps([(), ()])
        with pytest.raises(
            CaptureError, match=r"^model: expected the parameters of the warm-up, got 1 more$"
        ):
            svi.steps([(), ()])


def test_numbers_of_steps_that_displace_each_other_are_reported() -> None:
    dmm = small_dmm()
    svi = GraphedSVI(dmm.model, dmm.guide, adam(), Trace_ELBO(), capturer=RecordedGraphs(), max_graphs=1)
    batch = make_batch((2, 1))

    def alternating() -> None:
        for i in range(18):
            svi.steps([batch] * (1 + i % 2))

    with pytest.warns(RuntimeWarning, match=r"the number of steps\. Remedies: take the same") as caught:
        alternating()
    assert [w.filename for w in caught] == [__file__]
