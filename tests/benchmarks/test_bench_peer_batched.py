"""The batched PyTorch peer, plain and compiled, has the losses, gradients and updates of the tutorial."""

import functools
from dataclasses import replace

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam

from benchmarks import peer_batched, peer_torch
from benchmarks.peer_batched import BatchedImplementation, BatchedStepper, compiled, padded
from benchmarks.stepper import OPTIMIZER, tutorial_noise
from tests.helpers_peers import (
    STEPS,
    baseline_losses,
    disagreements,
    parameters,
    ragged_batch,
    ragged_case,
)


@pytest.fixture
def traced():
    """Compile by the front end only and run its graph eagerly, as inductor takes half a minute."""
    torch._dynamo.reset()  # other tests would count towards the limit of recompilations
    return BatchedImplementation("traced", functools.partial(compiled, "aot_eager"))


def assert_trains_as_the_tutorial(implementation):
    case, start = ragged_case(), parameters()
    stepper, losses = implementation.setup(case, start), []
    for seed in range(STEPS):
        batch = case.batches[seed % len(case.batches)]
        losses.append(stepper.step_with(padded(batch), tutorial_noise(batch, 8, seed)).item())
    assert losses == pytest.approx(baseline_losses(case, start), rel=2e-6)
    # Losses hardly depend on the decay of the learning rate.
    assert stepper.optimizer.steps.item() == STEPS
    assert stepper.optimizer.lr.item() == pytest.approx(
        OPTIMIZER["lr"] * OPTIMIZER["lrd"] ** STEPS, rel=1e-12
    )


def test_agrees_on_ragged_batches():
    assert disagreements(BatchedImplementation(), ragged_case()) == set()


def test_a_wrong_loss_is_detected(monkeypatch):
    right = peer_torch.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        peer_torch, "binary_cross_entropy_with_logits", lambda *args, **kw: 1.001 * right(*args, **kw)
    )
    assert disagreements(BatchedImplementation(), ragged_case()) == {"SVI loss", "SVI gradients"}


def test_reading_padding_is_detected(monkeypatch):
    def unmasked(batch):
        right = padded(batch)
        return right._replace(valid=torch.ones_like(right.valid))

    monkeypatch.setattr(peer_batched, "padded", unmasked)
    assert disagreements(BatchedImplementation(), ragged_case(1)) == {"SVI loss", "SVI gradients"}


def test_training_has_the_losses_of_the_tutorial():
    assert_trains_as_the_tutorial(BatchedImplementation())


def test_compiled_peer_agrees_on_ragged_batches(traced):
    assert disagreements(traced, ragged_case()) == set()


def test_compiled_training_has_the_losses_of_the_tutorial(traced):
    assert_trains_as_the_tutorial(traced)


def test_an_epoch_of_many_lengths_is_compiled_in_few_functions():
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    case = replace(ragged_case(1), batches=tuple(ragged_batch([T, 2, 2]) for T in range(2, 9)))
    BatchedStepper(case, parameters(), compiled(count)).run()
    assert (
        len(graphs) == 4
    )  # the cell and the optimizer; the densities for the first length and for any length


def test_a_run_takes_a_step_per_batch():
    case, start = ragged_case(), parameters()
    stepper = BatchedImplementation().setup(case, start)
    before = {name: p.detach().clone() for name, p in stepper.parameters.items()}
    assert stepper.run() > 0
    assert stepper.optimizer.steps.item() == len(case.batches)
    for name, p in stepper.parameters.items():
        assert not torch.equal(p, before[name]), name
        assert torch.equal(start[name], before[name]), name


def test_reversed_sequences_are_followed_by_padding():
    batch = ragged_batch([5, 9, 1, 6])
    mine = padded(batch)
    assert torch.equal(mine.x, batch.mini_batch.transpose(0, 1))
    for b, length in enumerate(batch.mini_batch_seq_lengths.tolist()):
        assert torch.equal(mine.x_reversed[:length, b], mine.x[:length, b].flip(0))
        assert mine.valid[:, b].sum() == length
    back = mine.x_reversed.flatten(0, 1)[mine.source].view_as(mine.x)
    assert torch.equal(back, mine.x)


def test_the_optimizer_equals_pyros(monkeypatch):
    """Gradients above and below the clip, one so small that eps matters, and several steps."""
    for name, value in (("lr", 0.1), ("lrd", 0.9)):
        monkeypatch.setitem(OPTIMIZER, name, value)
    start = torch.tensor([1.0, -2.0, 0.5, 0.0])
    ours, pyros = (start.clone().requires_grad_() for _ in range(2))
    state, reference = peer_batched.adam_state({"p": ours}), ClippedAdam([pyros], **OPTIMIZER)
    for factor in (1.0, -3.0, 0.5, 2.0):
        gradient = factor * torch.tensor([50.0, -0.1, -30.0, 1e-8])
        pyros.grad = gradient.clone()
        peer_batched.clipped_adam(state, [gradient])
        reference.step()
        torch.testing.assert_close(ours, pyros, rtol=1e-6, atol=1e-7)
