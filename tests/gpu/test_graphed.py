"""Steps replayed from CUDA graphs equal eager steps, and do not synchronise."""

import warnings
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from dmm_fast import use_backend
from dmm_fast._arguments import GRADIENTS
from dmm_fast.data import SequenceSet
from dmm_fast.infer import GraphedSVI, ImportanceELBO
from dmm_fast.optim import ClippedAdam, PyroClippedAdam
from dmm_fast.triton import side_stream
from tests.compare import backends_for
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


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO, TraceMeanField_ELBO, *(partial(ImportanceELBO, 3, each) for each in GRADIENTS)]
)
def test_replays_equal_eager_steps(elbo: Any) -> None:
    """Sixteen steps on two alternating shapes, with a seed each, dropout, and one change of the rate."""
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


def test_steps_in_one_graph_equal_single_steps() -> None:
    """Graphs of three steps of several shapes, with dropout, one change of the rate, and a single step."""
    losses, states = [], []
    for several in (False, True):
        with pyro.get_param_store().scope():
            dmm, svi = make(GraphedSVI)
            assert isinstance(svi, GraphedSVI)
            told: list[float] = []
            for i in range(5):
                given = [
                    (
                        *(
                            t if t is None else t.cuda()
                            for t in make_batch(SHAPES[j % len(SHAPES)], seed=i + j)
                        ),
                        f,
                    )
                    for j, f in enumerate((0.1 + 0.1 * i, 0.2 + 0.1 * i, 0.3, 0.4))
                ]
                if i == 3:
                    for optimizer in svi.optim.optim_objs.values():
                        optimizer.param_groups[0]["lr"].fill_(0.02)
                torch.cuda.manual_seed(i)
                taken = svi.steps(given[:3]) if several else torch.stack([svi.step(*x) for x in given[:3]])
                assert (taken.dtype, taken.shape, taken.is_cuda) == (torch.float64, (3,), True)
                told += [*taken.tolist(), float(svi.step(*given[3]))]
            losses.append(told)
            states.append(dmm.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, value in states[0].items():
        assert_close(states[1][name], value, 1e-3, name)


def test_two_alternating_models_equal_each_alone() -> None:
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


def test_gradients_on_a_second_stream_are_bitwise_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    forks = []
    launches = side_stream.SideStream.launches

    def counted(self: Any, *given: Any) -> Any:
        forks.append(self)
        return launches(self, *given)

    monkeypatch.setattr(side_stream.SideStream, "launches", counted)
    losses, states = [], []
    for overlap in (False, True):
        with pyro.get_param_store().scope(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # as if a step were captured without overlap
            dmm = small_dmm().cuda()
            svi = GraphedSVI(dmm.model, dmm.guide, PyroClippedAdam(ADAM), Trace_ELBO(), overlap=overlap)
            told = []
            for i in range(16):
                batch = [t if t is None else t.cuda() for t in make_batch(SHAPES[i % 2], seed=i)]
                torch.cuda.manual_seed(i)
                told.append(float(svi.step(*batch, 0.1 + 0.05 * i)))
            losses.append(told)
            states.append(dmm.state_dict())
        assert len(forks) == (2 * 3 if overlap else 0)  # emission, transition and combiner of two graphs
    assert losses[0] == losses[1]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_a_gradient_read_within_the_backward_pass_is_detected() -> None:
    """On a GPU, autograd runs in a thread of its own, whose operators are also recorded."""
    read: list[torch.Tensor] = []
    edges: list[Any] = []
    dmm = small_dmm().cuda()

    def guide(*args: Any) -> Any:
        # Within the step: a node that is made elsewhere adds gradients up on the default stream.
        edges.append(torch.autograd.graph.get_gradient_edge(dmm.emitter.lin_z_to_hidden.weight))
        edges[-1].node.register_prehook(lambda grads: read.append(grads[0].norm()))
        return dmm.guide(*args)

    svi = GraphedSVI(dmm.model, guide, PyroClippedAdam(ADAM), Trace_ELBO(), overlap=True)
    batch = [t if t is None else t.cuda() for t in make_batch()]
    svi.step(*batch)
    with pytest.warns(
        RuntimeWarning, match="^overlap: the step is captured without it: aten.*reads a gradient"
    ):
        svi.step(*batch)
    assert bool(svi.step(*batch).isfinite())


def test_noise_continues_over_replays() -> None:
    _, svi = make(GraphedSVI)
    batch = [t if t is None else t.cuda() for t in make_batch()]
    # With a learning rate of 0, only the noise differs.
    svi.step(*batch)
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"].fill_(0.0)
    assert len({float(svi.step(*batch)) for _ in range(8)}) == 8
    seeded = []
    for _ in range(2):
        torch.cuda.manual_seed(7)
        seeded.append(float(svi.step(*batch)))
    assert seeded[0] == pytest.approx(seeded[1], rel=1e-6)


def test_a_replay_does_not_synchronise() -> None:
    sequences = data()
    _, svi = make(GraphedSVI, gather=lambda indices, T, factor: (*sequences.batch(indices, T), factor))
    chosen = [torch.tensor([i, i + 1, i + 2], device="cuda") for i in range(4)]
    svi.step(chosen[0], 12, 0.2)
    svi.step(chosen[1], 12, 0.3)
    torch.cuda.synchronize()
    with no_waiting():
        losses = [svi.step(indices, 12, 0.4) for indices in chosen]
    assert all(bool(loss.isfinite()) for loss in losses)
    several = [[(indices, 12, 0.4), (indices, 9, 0.4)] for indices in chosen]
    svi.steps(several[0])
    svi.steps(several[1])
    torch.cuda.synchronize()
    with no_waiting():
        taken = [svi.steps(batches) for batches in several]
    assert all(bool(losses.isfinite().all()) for losses in taken)


@pytest.mark.parametrize("backend", backends_for("clipped_adam", "cuda"))
def test_replays_count_and_decay_exactly(backend: str) -> None:
    """Many blocks, and two alternating graphs with the same step counts."""
    params = [
        torch.randn(shape, device="cuda").requires_grad_() for shape in ((600, 880), (3,), (0,), (70, 70))
    ]
    optimizer = ClippedAdam([{"params": params[:2]}, {"params": params[2:], "lr": 0.25}], **ADAM)
    for p in params:
        p.grad = torch.randn_like(p)
    with use_backend(backend):
        optimizer.step()
        graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
        for graph in graphs:
            with torch.cuda.graph(graph):
                optimizer.step()
    for i in range(500):
        graphs[i % 2].replay()
    rates = [0.01, 0.25]
    for _ in range(501):
        rates = [rate * 0.99 for rate in rates]
    assert [float(group["lr"]) for group in optimizer.param_groups] == rates
    assert [int(optimizer.state[p]["step"]) for p in params] == [501] * len(params)


def test_graphs_share_a_memory_pool() -> None:
    """Graphs in one pool are replayed in any order, and the first is deleted before the others."""
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
