"""The gate turns red for a contestant that computes something else."""

import math

import pyro
import pytest
import torch

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import QUICK_SIZES, Case, full_batch
from benchmarks.contestants import BASELINE, CONTESTANTS
from benchmarks.correctness import check, double_reference, to_double, worst_gradient_error
from benchmarks.pyro_racer import PyroContestant


class WithoutAnnealing(BaselineDMM):
    """Forgets the annealing factor."""

    def guide(self, *args):
        return super().guide(*args[:4])

    def model(self, *args):
        return super().model(*args[:4])


class HastyEmitter(BaselineDMM):
    """The right loss, but one of its gradients is a thousandth too large."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.emitter.lin_z_to_hidden.weight.register_hook(lambda grad: 1.001 * grad)


def case(annealing_factor=0.7) -> Case:
    return Case("tiny", (full_batch(3, 4),), "random", 1, 1, (0,), annealing_factor, QUICK_SIZES)


def verdicts(module) -> dict[str, bool]:
    contestant = PyroContestant("it", lambda sizes: module(**sizes), BASELINE.optimizer)
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    return {v.op: v.ok for v in check(case(), parameters, [contestant])}


def test_all_contestants_agree():
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    rows = check(case(), parameters, CONTESTANTS)
    assert len(rows) == 2 * len(CONTESTANTS)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]


def test_a_wrong_loss_is_red():
    assert verdicts(WithoutAnnealing) == {"SVI loss": False, "SVI gradients": False}


def test_a_wrong_gradient_is_red():
    assert verdicts(HastyEmitter) == {"SVI loss": True, "SVI gradients": False}


def test_the_reference_sees_the_noise_of_a_float32_run():
    parameters = BASELINE.module(QUICK_SIZES).state_dict()
    racer = double_reference(case(), parameters, BASELINE.elbo)
    batch = case().batches[0]
    want, _ = BASELINE.setup(case(), parameters).loss_and_grads(batch, seed=5)
    got, grads = racer.loss_and_grads(to_double(batch), seed=5)
    assert got == pytest.approx(want, rel=1e-6)
    assert all(g.dtype == torch.float64 for g in grads.values())


def test_gradient_errors_are_norm_wise_and_nan_is_the_worst():
    want = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert worst_gradient_error(want, want) == 0.0
    near = {"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}
    assert worst_gradient_error(near, want) == pytest.approx(0.1)
    not_zero = {"a": want["a"], "b": torch.tensor([0.0, 0.2])}
    assert worst_gradient_error(not_zero, want) == pytest.approx(0.2)
    broken = {"a": torch.tensor([math.nan, 4.0]), "b": torch.zeros(2)}
    assert worst_gradient_error(broken, want) == math.inf


def test_racers_keep_their_parameters_to_themselves():
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
