"""Replayed steps of the batched PyTorch peer equal its eager steps; graphs are simulated on the CPU."""

from dataclasses import replace

import pyro
import pytest
import torch

from benchmarks import peer_batched
from benchmarks.peer_batched import PLAIN, BatchedImplementation
from benchmarks.peer_graphed import GraphedImplementation, GraphedStepper
from benchmarks.replays import compare_replays
from tests.helpers_graph import RecordedGraphs
from tests.helpers_peers import disagreements, parameters, ragged_batch, ragged_case

SHAPES = ([5, 2, 4], [3, 3], [5, 5, 1])  # two shapes, one of them twice


class Forgetful(RecordedGraphs):
    """Replays return the loss and do nothing, as if the graph were empty."""

    def capture(self, step):
        replay = super().capture(step)
        loss = replay().clone()
        return lambda: loss


class Wrong(RecordedGraphs):
    """Replays return another loss."""

    def capture(self, step):
        replay = super().capture(step)
        return lambda: 1.001 * replay()


def graphed(graphs=RecordedGraphs):
    return GraphedImplementation(capturer=lambda device: graphs())


def epoch():
    return replace(ragged_case(1), batches=tuple(map(ragged_batch, SHAPES)))


def test_agrees_on_ragged_batches():
    assert disagreements(graphed(), ragged_case()) == set()


def test_the_check_uses_a_replay():
    assert disagreements(graphed(Wrong), ragged_case(1)) == {"SVI loss"}


def test_a_wrong_part_is_detected():
    def wrong(*args):
        z, scale = peer_batched.cell(*args)
        return 1.01 * z, scale

    implementation = replace(graphed(), parts=lambda: PLAIN._replace(cell=wrong))
    assert disagreements(implementation, ragged_case(1)) == {"SVI loss", "SVI gradients"}


def test_replays_are_bitwise_equal_to_steps():
    case, start, graphs = epoch(), parameters(), RecordedGraphs()
    plain = BatchedImplementation().setup(case, start)
    replayed = GraphedStepper(case, start, PLAIN, graphs)
    told = []
    for stepper in (plain, replayed):
        pyro.set_rng_seed(3)
        told.append([stepper.run() for _ in range(4)])
    assert told[0] == told[1]
    for name, p in plain.parameters.items():
        assert torch.equal(replayed.parameters[name], p), name
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 4 * 3 - 2)


def test_every_shape_is_captured_before_timing():
    graphs = RecordedGraphs()
    stepper = GraphedStepper(epoch(), parameters(), PLAIN, graphs)
    timed = stepper.timed()
    assert (graphs.runs, graphs.captures) == (2, 2)
    assert timed.step() > 0
    assert (graphs.runs, graphs.captures) == (2, 2)


def test_a_step_that_synchronises_cannot_be_captured():
    def waits(state, gradients):
        state.steps.item()

    stepper = GraphedStepper(epoch(), parameters(), PLAIN._replace(clipped_adam=waits), RecordedGraphs())
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        stepper.run()


def test_losses_of_replays_are_compared():
    case = ragged_case(1)
    result = compare_replays(case, BatchedImplementation(), graphed())
    assert (result.backend, result.case, result.ok) == (
        "PyTorch, batched, CUDA graph",
        "ragged",
        True,
    )
    assert result.max_rel_error < 1e-6
    assert not compare_replays(case, BatchedImplementation(), graphed(Forgetful)).ok
