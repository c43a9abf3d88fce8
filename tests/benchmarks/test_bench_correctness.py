"""The comparison with float64 fails for an implementation that computes something else."""

import math

import pyro
import pytest
import torch

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import QUICK_SIZES, Case, full_batch
from benchmarks.correctness import check, double_reference, to_double, worst_gradient_error
from benchmarks.implementations import BASELINE, IMPLEMENTATIONS
from benchmarks.pyro_stepper import PyroImplementation


class WithoutAnnealing(BaselineDMM):
    """Ignores the annealing factor."""

    def guide(self, *args):
        return super().guide(*args[:4])

    def model(self, *args):
        return super().model(*args[:4])


class HastyEmitter(BaselineDMM):
    """Returns the right loss, and one gradient that is too large by 0.1%."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.emitter.lin_z_to_hidden.weight.register_hook(lambda grad: 1.001 * grad)


def case(annealing_factor=0.7) -> Case:
    return Case("tiny", (full_batch(3, 4),), "random", 1, 1, (0,), annealing_factor, QUICK_SIZES)


def check_results(module) -> dict[str, bool]:
    implementation = PyroImplementation("it", lambda sizes: module(**sizes), BASELINE.optimizer)
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    return {v.op: v.ok for v in check(case(), parameters, [implementation])}


def test_all_implementations_agree():
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    rows = check(case(), parameters, IMPLEMENTATIONS)
    assert len(rows) == 2 * len(IMPLEMENTATIONS)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]


def test_a_wrong_loss_fails():
    assert check_results(WithoutAnnealing) == {"SVI loss": False, "SVI gradients": False}


def test_a_wrong_gradient_fails():
    assert check_results(HastyEmitter) == {"SVI loss": True, "SVI gradients": False}


def test_the_reference_uses_the_noise_of_a_float32_run():
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    stepper = double_reference(case(), parameters, BASELINE.elbo)
    batch = case().batches[0]
    want, _ = BASELINE.setup(case(), parameters).loss_and_grads(batch, seed=5)
    got, grads = stepper.loss_and_grads(to_double(batch), seed=5)
    assert got == pytest.approx(want, rel=1e-6)
    assert all(g.dtype == torch.float64 for g in grads.values())


def test_gradient_errors_are_norm_wise_and_infinite_for_nan():
    want = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert worst_gradient_error(want, want) == 0.0
    near = {"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}
    assert worst_gradient_error(near, want) == pytest.approx(0.1)
    not_zero = {"a": want["a"], "b": torch.tensor([0.0, 0.2])}
    assert worst_gradient_error(not_zero, want) == pytest.approx(0.2)
    broken = {"a": torch.tensor([math.nan, 4.0]), "b": torch.zeros(2)}
    assert worst_gradient_error(broken, want) == math.inf


def test_steppers_have_separate_parameters():
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    first, second = (BASELINE.setup(case(), parameters) for _ in range(2))
    before = {name: value.clone() for name, value in second.module.state_dict().items()}
    with first.active():
        first.run()
    assert not list(pyro.get_param_store())
    for name, value in second.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    moved = first.module.state_dict()
    assert not torch.equal(moved["z_q_0"], before["z_q_0"])
