"""Steps replayed from a graph are bitwise equal to those of ``pyro.infer.SVI``.

Graphs are simulated on the CPU by :class:`tests.helpers_graph.RecordedGraphs`.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from dmm_fast.data import SequenceSet
from dmm_fast.infer import GraphedSVI
from tests.helpers_graph import RecordedGraphs, Run, adam, assert_same_bits, set_rates
from tests.helpers_model import FLOWS, assert_close, make_batch

SHAPES = ((6, 2, 1, 5), (3, 3), (6, 2, 1, 5), (4, 1, 2, 6), (3, 2))
"""Lengths of one batch after another: two shapes, which take turns."""


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "analytic KL": {"elbo": TraceMeanField_ELBO},
    "dropout": {"num_layers": 2, "rnn_dropout_rate": 0.5},
    "flows": FLOWS,
    "sites": {"per_step_sites": True},
    "gaussian": {"emission": "gaussian"},
    "particles": {"elbo": lambda: Trace_ELBO(2)},
    "left": {"inference": "st-l", "rnn": "gru"},
    "both directions": {"inference": "st-lr", **FLOWS},
    "mean field": {"inference": "mf-r", **FLOWS},
    "mean field, left": {"inference": "mf-l", "elbo": TraceMeanField_ELBO},
    "mean field, both directions": {"inference": "mf-lr", "rnn": "lstm"},
    "vectorized": {"elbo": lambda: Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_replays_equal_bitwise_steps(kind: str) -> None:
    graphs = RecordedGraphs()
    ours, theirs = (Run(g, **KINDS[kind]) for g in (graphs, None))
    emission = KINDS[kind].get("emission", "bernoulli")
    is_analytic = KINDS[kind].get("elbo") is TraceMeanField_ELBO
    for i in range(12):
        batch = make_batch(SHAPES[i % len(SHAPES)], seed=i, emission=emission)
        if i == 6:
            for run in (ours, theirs):
                set_rates(run.optim, 0.02)
        factor = 0.1 + 0.07 * i
        # The loss sums the same float32 terms in float64; Pyro sums analytic terms in float32.
        loss, right = ours.step(*batch, factor), theirs.step(*batch, annealing_factor=factor)
        assert loss == (pytest.approx(right, rel=1e-6) if is_analytic else right)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 10)


def test_the_returned_loss_is_not_overwritten() -> None:
    run, batch = Run(RecordedGraphs()), make_batch()
    losses = [run.within(lambda: run.svi.step(*batch, 1.0)) for _ in range(5)]
    assert {(loss.dtype, loss.shape, loss.requires_grad) for loss in losses} == {(torch.float64, (), False)}
    assert len({float(loss) for loss in losses}) == 5


def test_an_argument_may_require_a_gradient() -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(4):
        batch = make_batch(seed=i)
        batch = batch._replace(mini_batch=batch.mini_batch.clone().requires_grad_())
        assert ours.step(*batch) == theirs.step(*batch)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (1, 1, 3)


def test_a_seed_between_replays_takes_effect() -> None:
    run, batch = Run(RecordedGraphs()), make_batch()
    for _ in range(3):
        run.step(*batch)
    state = {name: value.clone() for name, value in run.dmm.state_dict().items()}

    def seeded() -> float:
        run.dmm.load_state_dict(state)
        pyro.set_rng_seed(3)
        return float(run.svi.step(*batch))

    assert run.within(seeded) == run.within(seeded) != run.step(*batch)


@pytest.mark.parametrize("graphed", [False, True])
def test_on_a_cpu_it_is_a_plain_svi(graphed: bool) -> None:
    theirs = Run(None)
    ours = Run(None)
    options = {"max_graphs": 0, "capturer": RecordedGraphs()} if graphed else {}
    svi = GraphedSVI(ours.dmm.model, ours.dmm.guide, ours.optim, Trace_ELBO(), **options)
    ours.svi = svi
    for i in range(4):
        batch = make_batch(SHAPES[i], seed=i)
        loss = ours.within(lambda b=batch: svi.step(*b, 0.5))
        assert (loss.dtype, loss.shape) == (torch.float64, ())
        assert loss.item() == theirs.step(*batch, 0.5)
        assert_same_bits(ours, theirs)
    assert isinstance(svi, SVI)
    assert not svi._kept


class TestGather:
    """Mini-batches gathered from a resident set, padded to few numbers of time steps."""

    @pytest.fixture
    def data(self) -> SequenceSet:
        batch = make_batch((1, 9, 3, 4, 2, 12, 5, 7), dtype=torch.float64)
        return SequenceSet(batch.mini_batch, batch.mini_batch_seq_lengths)

    def test_padded_steps_are_few(self, data: SequenceSet) -> None:
        assert [data.padded_steps(n, 5) for n in (1, 5, 6, 10, 11, 12)] == [5, 5, 10, 10, 12, 12]
        assert [data.padded_steps(n, [7, 3]) for n in (1, 3, 4, 7, 8)] == [3, 3, 7, 7, 12]
        assert data.padded_steps(2) == 12
        assert data.padded_steps(2, (2, 99)) == 2

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ((0,), r"^longest: expected a number of time steps between 1 and 12, got 0$"),
            ((13,), r"^longest: expected .* between 1 and 12, got 13$"),
            ((3, 0), r"^buckets: expected positive numbers of time steps, got 0$"),
            ((3, [4, -1]), r"^buckets: expected positive numbers of time steps, got \[4, -1\]$"),
        ],
    )
    def test_bad_steps_are_refused(self, data: SequenceSet, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            data.padded_steps(*given)

    def test_a_padded_step_equals_that_of_the_unpadded_batch(self, data: SequenceSet) -> None:
        """On a CPU noise is drawn per step, so equal seeds give equal noise at valid steps."""
        graphs = RecordedGraphs()
        ours, theirs = (Run(None, dtype=torch.float64) for _ in range(2))
        ours.svi = GraphedSVI(
            ours.dmm.model,
            ours.dmm.guide,
            ours.optim,
            Trace_ELBO(),
            gather=lambda indices, T, factor: (*data.batch(indices, T), factor),
            capturer=graphs,
        )
        batches = ([4, 0, 2], [3, 6, 6], [1, 0, 7], [2, 2, 0], [0], [6, 3, 4])
        for seed, chosen in enumerate(batches):
            indices = torch.tensor(chosen)
            ours.random = theirs.random = torch.manual_seed(seed).get_state()
            T = int(data.lengths[indices].max())
            loss = ours.step(indices, data.padded_steps(T, 5), 0.3)
            assert loss == pytest.approx(theirs.step(*data.batch(indices), 0.3), rel=1e-12)
            for (name, p), q in zip(ours.dmm.named_parameters(), theirs.dmm.parameters(), strict=True):
                assert_close(p.detach(), q.detach(), 1e-12, name)
        assert (graphs.runs, graphs.captures, graphs.replays) == (3, 1, 3)


class TestBookkeeping:
    @pytest.fixture
    def graphs(self) -> RecordedGraphs:
        return RecordedGraphs()

    def test_the_least_recently_used_graph_is_dropped(self, graphs: RecordedGraphs) -> None:
        run = Run(graphs, max_graphs=2)
        a, b, c = (make_batch((n, 1)) for n in (2, 3, 4))
        for batch in (a, a, b, b, a, c, c):
            run.step(*batch)
        assert (graphs.runs, graphs.captures) == (3, 3)
        run.step(*a)
        run.step(*c)
        assert (graphs.runs, graphs.captures) == (3, 3)
        run.step(*b)
        assert graphs.runs == 4

    def test_warm_up_has_the_requested_length(self, graphs: RecordedGraphs) -> None:
        run, batch = Run(graphs, warm_up=3), make_batch()
        for _ in range(5):
            run.step(*batch)
        assert (graphs.runs, graphs.captures, graphs.replays) == (3, 1, 2)

    def test_a_signature_has_shapes_types_and_values_other_than_floats(self, graphs: RecordedGraphs) -> None:
        def model(x: Tensor, scale: float, *, flag: Any = None) -> None:
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(pyro.param("m", x.new_zeros(3)), 1.0).to_event(1), obs=x)

        pyro.clear_param_store()
        svi = GraphedSVI(model, lambda *_, **__: None, adam(), Trace_ELBO(), capturer=graphs)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((torch.zeros(3), 0.5), {}),
            ((torch.zeros(3, dtype=torch.float64), 0.5), {}),
            ((torch.zeros(3), 1), {}),
            ((torch.zeros(3), 2), {}),
            ((torch.zeros(3), True), {}),
            ((torch.zeros(3), 0.5), {"flag": "a"}),
            ((torch.zeros(3), 0.5), {"flag": "b"}),
            ((torch.zeros(3), 0.5), {"flag": None}),
        ]
        for number, (args, kwargs) in enumerate(calls, 1):
            svi.step(*args, **kwargs)
            assert graphs.runs == number
        svi.step(torch.ones(3), 0.7)
        assert (graphs.runs, graphs.captures) == (len(calls), 1)

    def test_training_and_evaluation_have_graphs_of_their_own(self, graphs: RecordedGraphs) -> None:
        layers = {"num_layers": 2, "rnn_dropout_rate": 0.5}
        ours, theirs, batch = Run(graphs, **layers), Run(None, **layers), make_batch()
        for mode in (True, True, True, False, False, False, True):
            for run in (ours, theirs):
                run.dmm.train(mode)
            assert ours.step(*batch) == theirs.step(*batch)
        assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 5)


def number_as_rate(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] = 0.03


def other_betas(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        optimizer.param_groups[0]["betas"] = (0.5, 0.6)


def reload_state(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        optimizer.load_state_dict(optimizer.state_dict())
        for state in optimizer.state.values():
            state["exp_avg"] = state["exp_avg"] + 0.1


def move_parameters(run: Run) -> None:
    for p in run.dmm.parameters():
        p.data = p.data + 0.01


def rate_in_other_memory(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"].clone()


def count_in_other_memory(run: Run) -> None:
    for optimizer in run.optim.optim_objs.values():
        for state in optimizer.state.values():
            state["step"] = state["step"].clone()


CHANGES = (
    number_as_rate,
    other_betas,
    reload_state,
    move_parameters,
    rate_in_other_memory,
    count_in_other_memory,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_that_a_graph_cannot_follow_start_over(change: Callable[[Run], None]) -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(8):
        if i == 4:
            change(ours)
            change(theirs)
        batch = make_batch(seed=i)
        assert ours.step(*batch) == theirs.step(*batch)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 6)


@pytest.mark.parametrize("always", [False, True], ids=("made when used", "made at once"))
def test_a_parameter_unused_in_some_steps_behaves_as_with_pyro(always: bool) -> None:
    """A parameter already in the store decays in steps that do not use it."""

    def model(x: Tensor, second: bool) -> None:
        loc = pyro.param("a", torch.zeros(3))
        if always:
            pyro.param("b", torch.ones(3))
        if second:
            loc = loc + pyro.param("b", torch.ones(3))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def run(make: Callable[..., SVI], seconds: str) -> dict[str, Tensor]:
        pyro.clear_param_store()
        svi = make(model, lambda *args: None, adam(), Trace_ELBO())
        for i, second in enumerate(seconds):
            svi.step(torch.full((3,), float(i)), second == "b")
        return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}

    graphs = RecordedGraphs()
    for seconds in ("aaabbbaaabab", "bbbaaabb"):
        ours = run(lambda *args: GraphedSVI(*args, capturer=graphs), seconds)
        theirs = run(SVI, seconds)
        assert ours.keys() == theirs.keys() == {"a", "b"}
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert graphs.replays > 8
