"""Dropout of the past data that transition and emission read."""

from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from dmm_fast import DMM
from dmm_fast.infer import SequenceELBO, importance_nll
from dmm_fast.training import TrainConfig
from tests.device import cpu_only
from tests.helpers_model import SIZES, loss_and_grads, make_batch, small_dmm

pytestmark = cpu_only

RATE = 0.25


class Recording(DMM):
    """A DMM that keeps what its two networks are given as past data."""

    def transition_inputs(self, batch: Any) -> Tensor | None:
        self.of_transition = super().transition_inputs(batch)
        return self.of_transition

    def emission_inputs(self, z: Tensor, batch: Any) -> Tensor:
        made = super().emission_inputs(z, batch)
        self.of_emission = made[..., SIZES["z_dim"] :]
        return made


def test_both_networks_read_the_same_elements_and_their_mean_is_kept() -> None:
    dmm = Recording(**SIZES, augment="both", past_dropout_rate=RATE)
    x = torch.ones(40, 60, SIZES["input_dim"])
    dmm.model(x)
    read = dmm.of_transition
    assert read is not None
    assert torch.equal(read, dmm.of_emission)
    assert not read[:, 0].any()
    assert {*read[:, 1:].unique().tolist()} == {0.0, torch.tensor(1 / (1 - RATE)).item()}
    kept = read[:, 1:].bool().double()
    # Six standard errors of the mean, over all elements and over those of a step and of a feature.
    for dims in ((0, 1, 2), (0, 2), (0, 1)):
        bound = 6 * (RATE * (1 - RATE) * kept.mean(dims).numel() / kept.numel()) ** 0.5
        assert (kept.mean(dims) - (1 - RATE)).abs().max() < bound
    dmm.model(x)
    assert not torch.equal(read, dmm.of_transition)


@pytest.mark.parametrize("augment", ["transition", "emission", "both"])
def test_dropout_is_active_only_in_training(augment: str) -> None:
    batch = make_batch()
    plain, dmm = small_dmm(augment=augment), small_dmm(augment=augment, past_dropout_rate=0.5)
    expected = loss_and_grads(plain, batch, Trace_ELBO())[0]
    assert loss_and_grads(dmm, batch, Trace_ELBO())[0] != expected
    checked = dmm.mini_batch(*batch)
    z = torch.zeros(*batch.mini_batch.shape[:2], SIZES["z_dim"])
    assert torch.equal(dmm.emission_inputs(z, checked), plain.emission_inputs(z, checked))
    torch.manual_seed(3)
    measured = importance_nll(dmm, batch, 4)
    assert dmm.training
    torch.manual_seed(3)
    assert torch.equal(measured, importance_nll(plain, batch, 4))
    dmm.eval()
    assert loss_and_grads(dmm, batch, Trace_ELBO())[0] == expected


def test_sites_of_single_steps_drop_the_same_elements() -> None:
    dmm = small_dmm(augment="both", past_dropout_rate=0.5, dtype=torch.float64)
    batch = make_batch(dtype=torch.float64)
    z = torch.randn(*batch.mini_batch.shape[:2], SIZES["z_dim"], dtype=torch.float64)
    given = {"z": z, **{f"z_{t + 1}": z[:, t] for t in range(z.shape[1])}}
    sums = []
    for per_step in (False, True):
        dmm.per_step_sites = per_step
        torch.manual_seed(5)
        trace = poutine.trace(poutine.condition(dmm.model, data=given)).get_trace(*batch)
        sums.append(trace.log_prob_sum())
    assert torch.allclose(sums[0], sums[1], rtol=1e-12)


def test_draws_of_the_model_are_not_dropped() -> None:
    dmm = small_dmm(augment="both", past_dropout_rate=1.0, per_step_sites=True)
    plain = small_dmm(augment="both", per_step_sites=True)
    drawn = []
    for each in (dmm, plain):
        torch.manual_seed(4)
        drawn.append(torch.stack(each.model(None, None, torch.ones(3, 5))))
    assert torch.equal(*drawn)


def test_particles_share_the_elements() -> None:
    dmm, batch = small_dmm(augment="both", past_dropout_rate=0.5), make_batch()
    many = SequenceELBO(Trace_ELBO(num_particles=3, vectorize_particles=True))
    assert torch.isfinite(torch.as_tensor(many.loss(dmm.model, dmm.guide, *batch)))


@pytest.mark.parametrize("maker", [DMM, TrainConfig])
def test_a_rate_needs_past_data(maker: Any) -> None:
    with pytest.raises(ValueError, match=r"^past_dropout_rate: expected 0 without augment, got 0\.1"):
        maker(past_dropout_rate=0.1)
    with pytest.raises(ValueError, match=r"^past_dropout_rate: expected .*0.* 1.*got .*1\.5"):
        maker(past_dropout_rate=1.5, augment="both")
