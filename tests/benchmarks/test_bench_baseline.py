"""The baseline is the tutorial's model: it agrees with its mended variant and with ``DMM``."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from benchmarks.baseline import (
    BaselineDMM,
    _reverse_at_once,
    _reverse_rows,
    tutorial_mini_batch,
)
from benchmarks.correctness import to_double
from dmm_fast.data import Batch
from dmm_fast.model import DMM

SIZES = {"input_dim": 7, "z_dim": 4, "emission_dim": 6, "transition_dim": 5, "rnn_dim": 8}
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def ragged_batch(lengths: list[int], dtype: torch.dtype) -> Batch:
    sequences = torch.zeros(len(lengths), max(lengths), SIZES["input_dim"])
    for row, length in zip(sequences, lengths, strict=True):
        row[:length] = (torch.rand(length, SIZES["input_dim"]) < 0.4).float()
    batch = tutorial_mini_batch(torch.arange(len(lengths)), sequences, torch.tensor(lengths))
    return to_double(batch) if dtype == torch.float64 else batch


def evaluate(
    module: nn.Module, batch: Batch, elbo: Trace_ELBO, annealing_factor: float = 0.6
) -> tuple[float, dict[str, Tensor]]:
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(7)
        loss = elbo.loss_and_grads(module.model, module.guide, *batch, annealing_factor)
    return loss, {name: p.grad for name, p in module.named_parameters()}


def norm_wise(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("lengths", [[5, 9, 1, 6], [3], [4, 4, 4]], ids=str)
def test_equals_dmm_for_the_same_noise(lengths, elbo, dtype):
    batch = ragged_batch(lengths, dtype)
    ours = DMM(**SIZES).to(dtype)
    baseline = BaselineDMM(**SIZES).to(dtype)
    baseline.load_state_dict(ours.state_dict(), strict=True)
    loss, grads = evaluate(ours, batch, elbo())
    want, want_grads = evaluate(baseline, batch, elbo())
    assert loss == pytest.approx(want, rel=LOSS_TOLERANCE[dtype])
    for name, grad in grads.items():
        assert norm_wise(grad, want_grads[name]) < 10 * LOSS_TOLERANCE[dtype], name


@pytest.mark.parametrize("per_step_sites", [False, True])
def test_equals_dmm_with_flows(per_step_sites):
    # Pyro's inverse of a flow allocates zeros in the default dtype.
    torch.set_default_dtype(torch.float64)
    batch = ragged_batch([3, 6, 2, 4], torch.float64)
    ours = DMM(**SIZES, num_iafs=2, iaf_dim=6, per_step_sites=per_step_sites).double()
    baseline = BaselineDMM(**SIZES, num_iafs=2, iaf_dim=6).double()
    baseline.load_state_dict(ours.state_dict(), strict=True)
    loss, grads = evaluate(ours, batch, Trace_ELBO())
    want, want_grads = evaluate(baseline, batch, Trace_ELBO())
    assert loss == pytest.approx(want, rel=1e-10)
    for name, grad in grads.items():
        assert norm_wise(grad, want_grads[name]) < 1e-9, name


@pytest.mark.parametrize("num_layers", [1, 2])
def test_mended_baseline_computes_the_same(num_layers):
    batch = ragged_batch([5, 9, 1, 6], torch.float64)
    as_is = BaselineDMM(**SIZES, num_layers=num_layers).double()
    mended = BaselineDMM(**SIZES, num_layers=num_layers, mended=True).double()
    mended.load_state_dict(as_is.state_dict(), strict=True)
    want, want_grads = evaluate(as_is, batch, Trace_ELBO())
    loss, grads = evaluate(mended, batch, Trace_ELBO())
    assert loss == want
    for name, grad in grads.items():
        assert norm_wise(grad, want_grads[name]) < 1e-13, name


@pytest.mark.parametrize("reverse", [_reverse_rows, _reverse_at_once])
def test_reversal_of_a_small_batch(reverse):
    padded = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [6.0, 0.0, 0.0]]).unsqueeze(-1)
    want = [[3.0, 2.0, 1.0], [5.0, 4.0, 0.0], [6.0, 0.0, 0.0]]
    assert reverse(padded, torch.tensor([3, 2, 1])).squeeze(-1).tolist() == want


def test_checkpoints_are_interchangeable_and_equal_seeds_give_equal_parameters():
    pyro.set_rng_seed(3)
    ours = DMM(**SIZES, num_iafs=1, iaf_dim=6)
    pyro.set_rng_seed(3)
    baseline = BaselineDMM(**SIZES, num_iafs=1, iaf_dim=6)
    assert list(ours.state_dict()) == list(baseline.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, baseline.state_dict()[name]), name
    ours.load_state_dict(baseline.state_dict(), strict=True)
    baseline.load_state_dict(ours.state_dict(), strict=True)


def test_annealing_scales_only_the_kl():
    batch = ragged_batch([4, 2], torch.float64)
    baseline = BaselineDMM(**SIZES).double()
    half, whole, double = (evaluate(baseline, batch, Trace_ELBO(), a)[0] for a in (0.5, 1.0, 1.5))
    assert whole - half == pytest.approx(double - whole, rel=1e-10)
    assert whole - half != 0
