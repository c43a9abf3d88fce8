"""Steps replayed from CUDA graphs: the numbers of plain steps, and nothing waits."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from dmm_fast.data import SequenceSet
from dmm_fast.infer import GraphedSVI
from dmm_fast.optim import PyroClippedAdam
from tests.gpu.test_streams import no_waiting
from tests.helpers_model import assert_close, make_batch, small_dmm

ADAM = {"lr": 0.01, "lrd": 0.99, "weight_decay": 0.1, "capturable": True}
SHAPES = ((6, 2, 1, 5), (3, 3), (4, 1, 2, 6), (3, 2))


def make(kind: type[SVI], elbo: Any = Trace_ELBO, **options: Any) -> tuple[Any, SVI]:
    """A DMM on the GPU, and its SVI; run in a parameter store of its own."""
    dmm = small_dmm(num_layers=2, rnn_dropout_rate=0.3).cuda()
    return dmm, kind(dmm.model, dmm.guide, PyroClippedAdam(ADAM), elbo(), **options)


def data() -> SequenceSet:
    batch = make_batch((1, 9, 3, 4, 2, 12, 5, 7))
    return SequenceSet(batch.mini_batch, batch.mini_batch_seq_lengths).to("cuda")


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_replays_have_the_numbers_of_steps(elbo: Any) -> None:
    """Sixteen steps on two shapes in turn, each from its own seed, dropout on, the rate set once."""
    losses, states = [], []
    for kind in (SVI, GraphedSVI):
        with pyro.get_param_store().scope():
            dmm, svi = make(kind, elbo)
            told = []
            for i in range(16):
                batch = [t if t is None else t.cuda() for t in make_batch(SHAPES[i % len(SHAPES)], seed=i)]
                if i == 8:
                    for optimizer in svi.optim.optim_objs.values():
                        optimizer.param_groups[0]["lr"].fill_(0.02)
                torch.cuda.manual_seed(i)
                told.append(float(svi.step(*batch, 0.1 + 0.05 * i)))
            losses.append(told)
            states.append(dmm.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, value in states[0].items():
        assert_close(states[1][name], value, 1e-3, name)


def test_two_models_in_turn_have_the_numbers_of_each_alone() -> None:
    batch = [t if t is None else t.cuda() for t in make_batch()]

    def step(svi: SVI, i: int) -> float:
        torch.cuda.manual_seed(i)
        return float(svi.step(*batch, 0.5))

    alone = []
    for _ in range(2):
        with pyro.get_param_store().scope():
            _, svi = make(GraphedSVI)
            alone.append([step(svi, i) for i in range(6)])
    (one, first), (other, second) = make(GraphedSVI), make(GraphedSVI)
    told = [(step(first, i), step(second, i)) for i in range(6)]
    for losses, expected in zip(zip(*told, strict=True), alone, strict=True):
        assert list(losses) == pytest.approx(expected, rel=1e-4)
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), 1e-3, name)


def test_noise_goes_on_from_replay_to_replay() -> None:
    _, svi = make(GraphedSVI)
    batch = [t if t is None else t.cuda() for t in make_batch()]
    # Without a rate nothing but the noise differs.
    svi.step(*batch)
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"].fill_(0.0)
    assert len({float(svi.step(*batch)) for _ in range(8)}) == 8
    seeded = []
    for _ in range(2):
        torch.cuda.manual_seed(7)
        seeded.append(float(svi.step(*batch)))
    assert seeded[0] == pytest.approx(seeded[1], rel=1e-6)


def test_a_replay_waits_for_nothing() -> None:
    sequences = data()
    _, svi = make(GraphedSVI, gather=lambda indices, T, factor: (*sequences.batch(indices, T), factor))
    chosen = [torch.tensor([i, i + 1, i + 2], device="cuda") for i in range(4)]
    svi.step(chosen[0], 12, 0.2)
    svi.step(chosen[1], 12, 0.3)
    torch.cuda.synchronize()
    with no_waiting():
        losses = [svi.step(indices, 12, 0.4) for indices in chosen]
    assert all(bool(loss.isfinite()) for loss in losses)


def test_graphs_share_their_memory_and_come_and_go() -> None:
    """One pool whose graphs are replayed in any order, and whose first goes while others stay."""
    sequences = data()
    losses = []
    for options in ({"max_graphs": 2}, {"max_graphs": 0}):
        with pyro.get_param_store().scope():
            _, svi = make(
                GraphedSVI,
                gather=lambda indices, T, factor: (*sequences.batch(indices, T), factor),
                **options,
            )
            told = []
            for i, T in enumerate((12, 12, 9, 9, 12, 9, 10, 10, 9, 10, 12, 12)):
                torch.cuda.manual_seed(i)
                indices = torch.tensor([0, 2, 3 + i % 2], device="cuda")
                told.append(float(svi.step(indices, T, 0.5)))
            losses.append(told)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
