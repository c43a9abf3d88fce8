"""Pyro's handlers and plates around a DMM, and several DMMs in one process."""

import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.contrib.autoname
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO, config_enumerate
from torch import Tensor, nn

from dmm_fast import DMM
from dmm_fast.optim import PyroClippedAdam
from tests.helpers_model import LENGTHS, SIZES, assert_same_step, loss_and_grads, make_batch, small_dmm

B = len(LENGTHS)


# --- plates of a data set -------------------------------------------------------------------------------


class InPlate:
    """Model and guide in a plate over a data set of 20 rows, with a mini-batch of four."""

    def __init__(self, dmm: DMM, **plate: Any) -> None:
        self.dmm, self.plate = dmm, plate
        self.named_parameters, self.zero_grad = dmm.named_parameters, dmm.zero_grad

    def model(self, *args: Any) -> Any:
        with pyro.plate("data", 20, **self.plate):
            return self.dmm.model(*args)

    def guide(self, *args: Any) -> Any:
        with pyro.plate("data", 20, **self.plate):
            return self.dmm.guide(*args)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("vectorize", [False, True])
def test_a_plate_of_the_data_set_scales_each_row_once(per_step_sites: bool, vectorize: bool) -> None:
    dmm, batch = (
        small_dmm(dtype=torch.float64, per_step_sites=per_step_sites),
        make_batch(dtype=torch.float64),
    )
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    inside = loss_and_grads(InPlate(dmm, subsample=torch.tensor([3, 1, 17, 4])), batch, elbo)
    loss, grads = loss_and_grads(dmm, batch, elbo)
    scaled = {name: 20 / B * grad for name, grad in grads.items()}
    assert_same_step(inside, (20 / B * loss, scaled), 1e-10)


@pytest.mark.parametrize("plate", [{}, {"subsample_size": 5}])
def test_a_plate_of_other_rows_is_refused_with_the_remedy(plate: dict[str, Any]) -> None:
    around = InPlate(small_dmm(), **plate)
    message = r"plate 'data': expected as many rows as the mini-batch inside it, 4 \(subsample_size=4"
    with pytest.raises(ValueError, match=message):
        Trace_ELBO().loss(around.model, around.guide, *make_batch())


def test_a_plate_left_of_the_rows_holds_copies() -> None:
    dmm, batch = small_dmm(), make_batch()
    with pyro.plate("copies", 3, dim=-2):
        z = dmm.guide(*batch)
    assert isinstance(z, Tensor)
    assert z.shape == (3, B, max(LENGTHS), SIZES["z_dim"])


# --- estimators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("elbo", [TraceTMC_ELBO, TraceEnum_ELBO])
def test_enumeration_needs_sites_of_steps(elbo: type[Any]) -> None:
    dmm = small_dmm()
    guide = config_enumerate(dmm.guide, default="parallel", num_samples=3, expand=False)
    with pytest.raises(ValueError, match="per_step_sites: expected True under TraceTMC_ELBO and"):
        elbo(max_plate_nesting=1).loss(dmm.model, guide, *make_batch())


# --- masks of rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("per_step_sites", [False, True])
def test_nan_under_a_mask_of_rows_has_no_effect(per_step_sites: bool, emission: str, validate: bool) -> None:
    dmm = small_dmm(
        emission=emission, per_step_sites=per_step_sites, validate_args=validate, dtype=torch.float64
    )
    batch = make_batch(dtype=torch.float64, emission=emission)
    rows = torch.tensor([True, False, True, True])
    masked = SimpleNamespace(
        named_parameters=dmm.named_parameters,
        zero_grad=dmm.zero_grad,
        model=poutine.mask(dmm.model, mask=rows),
        guide=poutine.mask(dmm.guide, mask=rows),
    )
    clean = loss_and_grads(masked, batch, Trace_ELBO())
    for nothing in (math.nan, math.inf):
        batch.mini_batch[1, 0] = nothing
        assert_same_step(loss_and_grads(masked, batch, Trace_ELBO()), clean, 1e-10)


def test_finite_values_under_a_mask_of_rows_are_read_by_the_guide() -> None:
    dmm, batch = small_dmm(), make_batch()
    torch.manual_seed(0)
    plain = dmm.guide(*batch)
    torch.manual_seed(0)
    with poutine.mask(mask=torch.tensor([True, False, True, True])):
        masked = dmm.guide(*batch)
    assert torch.equal(plain, masked)


# --- several models -------------------------------------------------------------------------------------


def trained(dmm: DMM, svi: SVI, steps: int) -> dict[str, Tensor]:
    for _ in range(steps):
        svi.step(*make_batch())
    return {name: p.detach().clone() for name, p in dmm.named_parameters()}


def make_svi(dmm: DMM) -> SVI:
    return SVI(dmm.model, dmm.guide, PyroClippedAdam({"lr": 1e-2}), Trace_ELBO())


@pytest.mark.parametrize("sizes", [{}, {"z_dim": 5, "rnn_dim": 4}, {"num_layers": 2}])
def test_alternating_models_train_like_each_alone(sizes: dict[str, int]) -> None:
    alone = {}
    for seed, kwargs in ((0, {}), (1, sizes)):
        pyro.clear_param_store()
        dmm = small_dmm(seed, **kwargs)
        torch.manual_seed(8)
        alone[seed] = trained(dmm, make_svi(dmm), 4)
    pyro.clear_param_store()
    models = {0: small_dmm(0), 1: small_dmm(1, **sizes)}
    svis = {seed: make_svi(dmm) for seed, dmm in models.items()}
    states = dict.fromkeys(models, torch.Generator().manual_seed(8).get_state())
    for _ in range(4):
        for seed, dmm in models.items():
            torch.set_rng_state(states[seed])
            trained(dmm, svis[seed], 1)
            states[seed] = torch.get_rng_state()
    for seed, dmm in models.items():
        for name, p in dmm.named_parameters():
            assert torch.equal(p, alone[seed][name]), (seed, name)
        # An optimizer identifies parameters by name, regardless of the model in the store.
        assert set(svis[seed].optim.get_state()) == {f"dmm$$${n}" for n, _ in dmm.named_parameters()}


def test_a_replaced_parameter_is_trained() -> None:
    dmm = small_dmm()
    svi = make_svi(dmm)
    trained(dmm, svi, 1)
    dmm.emitter.lin_z_to_hidden.weight = nn.Parameter(torch.ones(4, 3).t().contiguous().t())
    before = dmm.emitter.lin_z_to_hidden.weight.detach().clone()
    assert not torch.equal(trained(dmm, svi, 1)["emitter.lin_z_to_hidden.weight"], before)


@pytest.mark.parametrize("per_step_sites", [False, True])
def test_two_models_in_one_step_are_both_trained(per_step_sites: bool) -> None:
    models = [small_dmm(seed, per_step_sites=per_step_sites) for seed in range(2)]

    def program(half: str) -> Any:
        def run(*batch: Any) -> None:
            for name, dmm in zip("ab", models, strict=True):
                with pyro.contrib.autoname.scope(prefix=name):
                    getattr(dmm, half)(*batch)

        return run

    before = [[p.detach().clone() for p in dmm.parameters()] for dmm in models]
    svi = SVI(program("model"), program("guide"), PyroClippedAdam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(2):
        svi.step(*make_batch())
    for dmm, kept in zip(models, before, strict=True):
        assert not any(torch.equal(p, old) for p, old in zip(dmm.parameters(), kept, strict=True))
    names = {name for dmm in models for name, _ in dmm.named_parameters()}
    assert set(svi.optim.get_state()) == {f"{dmm}$$${n}" for dmm in ("dmm", "dmm_1") for n in names}


def test_the_model_of_one_and_the_guide_of_another_are_trained() -> None:
    one, other = small_dmm(0), small_dmm(1)
    start = [p.detach().clone() for p in (one.z_0, other.z_q_0)]
    SVI(one.model, other.guide, PyroClippedAdam({"lr": 1e-2}), Trace_ELBO()).step(*make_batch())
    assert not torch.equal(one.z_0, start[0])
    assert not torch.equal(other.z_q_0, start[1])


# --- arguments ------------------------------------------------------------------------------------------


def test_positional_arguments_of_2017_are_refused_with_an_explanation() -> None:
    with pytest.raises(ValueError, match=r"^num_layers: expected a positive int; num_layers now stands"):
        DMM(88, 100, 100, 200, 600, 0.1, 0, 100, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_dim": "5"}, "^input_dim: expected a positive int, got str '5'"),
        ({"num_iafs": -1}, "^num_iafs: expected an int from 0"),
        ({"num_iafs": 1, "iaf_dim": 2, "z_dim": 3}, "^iaf_dim: expected at least z_dim = 3"),
        ({"rnn_dropout_rate": "0.1"}, "^rnn_dropout_rate: expected a probability"),
        ({"min_scale": -1.0}, "^min_scale: expected a finite number from 0"),
        ({"min_scale": math.nan}, "^min_scale: expected a finite number from 0"),
        ({"per_step_sites": 1}, "^per_step_sites: expected bool, got int 1"),
        ({"validate_args": "no"}, "^validate_args: expected bool or NoneType, got str"),
        ({"use_cuda": "cuda:0"}, "^use_cuda: expected bool, got str"),
        ({"emission": "poison"}, "^emission: expected one of bernoulli, gaussian"),
    ],
)
def test_an_argument_of_another_kind_is_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DMM(**{**SIZES, **kwargs})


META = torch.ones((), device="meta")


@pytest.mark.parametrize(
    "bad", ["1", None, True, math.nan, torch.tensor(1), torch.tensor(-1.0), [1.0], META, torch.ones(3)]
)
def test_an_annealing_factor_of_another_kind_is_named(bad: Any) -> None:
    dmm, batch = small_dmm(), make_batch()
    for half in (dmm.model, dmm.guide):
        with pytest.raises((TypeError, ValueError), match=r"^annealing_factor: expected a positive number"):
            half(*batch, bad)


def test_a_whole_annealing_factor_may_be_large() -> None:
    dmm, batch = small_dmm(), make_batch()
    svi = SVI(dmm.model, dmm.guide, PyroClippedAdam({"lr": 1e-3}), Trace_ELBO())
    losses = []
    for factor in (2**70, 2.0**70):
        pyro.clear_param_store()
        torch.manual_seed(0)
        losses.append(svi.evaluate_loss(*batch, factor))
    assert losses[0] == losses[1]
