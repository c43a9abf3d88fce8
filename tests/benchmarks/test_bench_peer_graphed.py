"""Replayed steps of the batched PyTorch peer are its steps; the graph here is of the CPU."""

from dataclasses import replace

import pyro
import pytest
import torch

from benchmarks import peer_batched
from benchmarks.peer_batched import PLAIN, BatchedContestant
from benchmarks.peer_graphed import GraphedContestant, GraphedRacer
from benchmarks.replays import compare_replays
from tests.helpers_graph import RecordedGraphs
from tests.helpers_peers import disagreements, parameters, ragged_batch, ragged_case

SHAPES = ([5, 2, 4], [3, 3], [5, 5, 1])  # two, of which one comes twice


class Forgetful(RecordedGraphs):
    """Replays give the loss and do nothing: as if a graph held none of the step's work."""

    def capture(self, step):
        replay = super().capture(step)
        loss = replay().clone()
        return lambda: loss


class Wrong(RecordedGraphs):
    """Replays give another loss."""

    def capture(self, step):
        replay = super().capture(step)
        return lambda: 1.001 * replay()


def graphed(graphs=RecordedGraphs):
    return GraphedContestant(capturer=lambda device: graphs())


def epoch():
    return replace(ragged_case(1), batches=tuple(map(ragged_batch, SHAPES)))


def test_the_gate_is_green_on_ragged_batches():
    assert disagreements(graphed(), ragged_case()) == set()


def test_the_gate_looks_at_a_replay():
    assert disagreements(graphed(Wrong), ragged_case(1)) == {"SVI loss"}


def test_the_gate_sees_a_wrong_part():
    def wrong(*args):
        z, scale = peer_batched.cell(*args)
        return 1.01 * z, scale

    contestant = replace(graphed(), parts=lambda: PLAIN._replace(cell=wrong))
    assert disagreements(contestant, ragged_case(1)) == {"SVI loss", "SVI gradients"}


def test_replays_have_the_bits_of_steps():
    case, start, graphs = epoch(), parameters(), RecordedGraphs()
    plain = BatchedContestant().setup(case, start)
    replayed = GraphedRacer(case, start, PLAIN, graphs)
    told = []
    for racer in (plain, replayed):
        pyro.set_rng_seed(3)
        told.append([racer.run() for _ in range(4)])
    assert told[0] == told[1]
    for name, p in plain.parameters.items():
        assert torch.equal(replayed.parameters[name], p), name
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 4 * 3 - 2)


def test_the_clock_finds_every_shape_captured():
    graphs = RecordedGraphs()
    racer = GraphedRacer(epoch(), parameters(), PLAIN, graphs)
    timed = racer.timed()
    assert (graphs.runs, graphs.captures) == (2, 2)
    assert timed.step() > 0
    assert (graphs.runs, graphs.captures) == (2, 2)


def test_a_step_that_waits_is_no_step_for_a_graph():
    def waits(state, gradients):
        state.steps.item()

    racer = GraphedRacer(epoch(), parameters(), PLAIN._replace(clipped_adam=waits), RecordedGraphs())
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        racer.run()


def test_losses_of_replays_are_compared():
    case = ragged_case(1)
    verdict = compare_replays(case, BatchedContestant(), graphed())
    assert (verdict.backend, verdict.case, verdict.ok) == ("PyTorch, batched, CUDA graph", "ragged", True)
    assert verdict.max_rel_error < 1e-6
    assert not compare_replays(case, BatchedContestant(), graphed(Forgetful)).ok
