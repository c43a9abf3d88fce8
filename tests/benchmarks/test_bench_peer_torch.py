"""The PyTorch peer has the losses, gradients and updates of the tutorial."""

import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam

from benchmarks import peer_torch
from benchmarks.peer_torch import Buffers, CombinerScan, FusedClippedAdam, Rows, TorchImplementation
from benchmarks.stepper import OPTIMIZER, tutorial_noise
from tests.helpers_peers import (
    STEPS,
    baseline_losses,
    disagreements,
    parameters,
    ragged_batch,
    ragged_case,
)


def test_agrees_on_ragged_batches():
    assert disagreements(TorchImplementation(), ragged_case()) == set()


def test_a_wrong_loss_is_detected(monkeypatch):
    right = peer_torch.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        peer_torch, "binary_cross_entropy_with_logits", lambda *args, **kw: 1.001 * right(*args, **kw)
    )
    assert disagreements(TorchImplementation(), ragged_case()) == {"SVI loss", "SVI gradients"}


def test_a_wrong_backward_is_detected(monkeypatch):
    right = CombinerScan.backward

    def wrong(ctx, *gradients):
        dh, *others = right(ctx, *gradients)
        return 1.001 * dh, *others

    monkeypatch.setattr(CombinerScan, "backward", staticmethod(wrong))
    assert disagreements(TorchImplementation(), ragged_case()) == {"SVI gradients"}


def test_training_has_the_losses_of_the_tutorial():
    case, start = ragged_case(), parameters()
    stepper = TorchImplementation().setup(case, start)
    losses = []
    for seed in range(STEPS):
        batch = case.batches[seed % len(case.batches)]
        rows = Rows(batch, Buffers())
        losses.append(stepper.step(rows, tutorial_noise(batch, 8, seed)[rows.valid]))
    assert losses == pytest.approx(baseline_losses(case, start), rel=2e-6)


def test_a_run_takes_a_step_per_batch():
    start = parameters()
    stepper = TorchImplementation().setup(ragged_case(), start)
    before = {name: p.detach().clone() for name, p in stepper.parameters.items()}
    assert stepper.run() > 0
    for name, p in stepper.parameters.items():
        assert not torch.equal(p, before[name]), name
        assert torch.equal(start[name], before[name]), name


def test_rows_equal_those_of_pack_padded_sequence():
    batch = ragged_batch([5, 9, 1, 6])
    rows = Rows(batch, Buffers())
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        batch.mini_batch, batch.mini_batch_seq_lengths, batch_first=True
    )
    assert torch.equal(rows.x, packed.data)
    assert rows.sizes == packed.batch_sizes.tolist()
    assert rows.last.tolist() == [20, 17, 15, 3]  # sequences of 9, 6, 5 and 1 steps
    assert rows.before[:6].tolist() == [0, 1, 2, 4, 5, 6]


def test_rows_refuse_an_unsorted_batch():
    batch = ragged_batch([2, 3])
    unsorted = batch._replace(mini_batch_seq_lengths=batch.mini_batch_seq_lengths.flip(0))
    with pytest.raises(ValueError, match=r"sorted by falling length, got \[2, 3\]"):
        Rows(unsorted, Buffers())


def test_buffers_are_kept_and_grow():
    buffers = Buffers()
    first = buffers.rows("a", 3, 2)
    assert buffers.rows("a", 2, 2).data_ptr() == first.data_ptr()
    assert buffers.rows("b", 3, 2).data_ptr() != first.data_ptr()
    assert buffers.rows("a", 5, 2).shape == (5, 2)


def test_the_optimizer_equals_pyros():
    """Gradients above and below the clip, one so small that eps matters, and several steps."""
    options = {**OPTIMIZER, "lr": 0.1, "lrd": 0.9}
    start = torch.tensor([1.0, -2.0, 0.5, 0.0])
    ours, pyros = (start.clone().requires_grad_() for _ in range(2))
    mine, reference = FusedClippedAdam([ours], **options), ClippedAdam([pyros], **options)
    for factor in (1.0, -3.0, 0.5, 2.0):
        for p, optimizer in ((ours, mine), (pyros, reference)):
            p.grad = factor * torch.tensor([50.0, -0.1, -30.0, 1e-8])
            optimizer.step()
        torch.testing.assert_close(ours, pyros, rtol=1e-6, atol=1e-7)
