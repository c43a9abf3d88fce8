"""Real-valued series in units of their own, and a least scale."""

import math
from typing import Any

import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from dmm_fast import DMM, infer
from dmm_fast.optim import PyroClippedAdam
from tests.helpers_model import (
    FLOWS,
    SIZES,
    TOLERANCE,
    assert_close,
    assert_same_step,
    loss_and_grads,
    make_batch,
    missing_mask,
    small_dmm,
)

D = SIZES["input_dim"]
LOC, SCALE = torch.linspace(-3, 1e4, D), torch.linspace(0.1, 50, D)


def gaussian(**kwargs: Any) -> DMM:
    return small_dmm(emission="gaussian", dtype=torch.float64, **kwargs)


def gaussian_batch(missing: int = 0) -> Any:
    batch = make_batch(dtype=torch.float64, emission="gaussian")
    return batch._replace(mini_batch_mask=missing_mask(batch, missing)) if missing else batch


def in_units(batch: Any) -> Any:
    return batch._replace(mini_batch=LOC.double() + SCALE.double() * batch.mini_batch)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("missing", [0, 2, 3])
def test_units_change_the_loss_only_by_their_logarithms(missing: int, per_step_sites: bool) -> None:
    dmm, batch = gaussian(per_step_sites=per_step_sites), gaussian_batch(missing)
    loss, grads = loss_and_grads(dmm, batch, Trace_ELBO())
    dmm.x_loc, dmm.x_scale = LOC.double(), SCALE.double()
    mask = batch.mini_batch_mask if batch.mini_batch_mask.dim() == 3 else batch.mini_batch_mask.unsqueeze(-1)
    volume = (mask * SCALE.double().log()).sum().item()
    assert_same_step(loss_and_grads(dmm, in_units(batch), Trace_ELBO()), (loss + volume, grads), 1e-9)


def test_the_units_of_a_data_set_are_its_moments() -> None:
    dmm = gaussian()
    x = LOC.double() + SCALE.double() * torch.randn(6, 9, D, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 1, 7, 9, 2])
    x[0, 2, 1] = math.nan
    mask = torch.ones(6, 9, D)
    mask[1, 1, 0] = 0
    dmm.standardize(x, lengths, mask)
    for d in range(D):
        seen = [
            x[n, t, d]
            for n in range(6)
            for t in range(int(lengths[n]))
            if mask[n, t, d] and not x[n, t, d].isnan()
        ]
        values = torch.stack(seen)
        assert_close(dmm.x_loc[d], values.mean(), 1e-12)
        assert_close(dmm.x_scale[d], values.std(correction=0), 1e-12)


def test_draws_are_in_the_units_of_the_data() -> None:
    dmm, batch = gaussian(), gaussian_batch()
    draws = []
    for given in (batch, in_units(batch)):
        torch.manual_seed(0)
        draws.append(
            (infer.reconstruct(dmm, given), infer.forecast(dmm, given, 4), dmm.model(None, *given[1:]))
        )
        dmm.x_loc, dmm.x_scale = LOC.double(), SCALE.double()
    valid = batch.mini_batch_mask.unsqueeze(-1)
    for plain, drawn, keep in zip(draws[0], draws[1], (valid, 1.0, valid), strict=True):
        assert_close(drawn, (LOC.double() + SCALE.double() * plain) * keep, 1e-12)
    emission = dmm.emission(torch.zeros(4, 6, 3, dtype=torch.float64), batch.mini_batch_seq_lengths)
    draw = emission.rsample((4000,))
    assert_close(draw.std(0), emission.stddev, 0.1)
    assert_close(draw.mean(0), emission.mean, 0.1)


def test_units_are_part_of_the_state() -> None:
    dmm, other = gaussian(), gaussian()
    assert "x_loc" not in dmm.state_dict()
    dmm.standardize(in_units(gaussian_batch()).mini_batch, gaussian_batch().mini_batch_seq_lengths)
    other.load_state_dict(dmm.state_dict())
    assert torch.equal(other.x_loc, dmm.x_loc)
    assert torch.equal(other.x_scale, dmm.x_scale)
    other.load_state_dict(gaussian().state_dict())
    assert other.x_loc is None


@pytest.mark.parametrize(
    ("emission", "sequences", "message"),
    [
        ("bernoulli", torch.zeros(2, 3, D), r"^emission: expected 'gaussian' for units, got 'bernoulli'"),
        ("gaussian", torch.zeros(2, 3, D + 1), r"^sequences: expected shape \(2, 3, 5\)"),
        ("gaussian", torch.full((2, 3, D), math.nan), r"^sequences: .*, got nothing observed in feature 0"),
        ("gaussian", torch.full((2, 3, D), math.inf), r"^sequences: .*, got one of nan in feature 0"),
        ("gaussian", [[1.0]], r"^sequences: expected a floating-point tensor"),
    ],
)
def test_invalid_units_are_refused(emission: str, sequences: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        small_dmm(emission=emission).standardize(sequences)


def test_a_feature_that_never_changes_keeps_its_unit() -> None:
    dmm = small_dmm(emission="gaussian")
    dmm.standardize(torch.full((2, 3, D), 7.0))
    assert dmm.x_loc.tolist() == [7.0] * D
    assert dmm.x_scale.tolist() == [1.0] * D


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_a_series_of_any_size_can_be_learnt(size: float) -> None:
    torch.manual_seed(0)
    x = size * (1 + 0.01 * torch.randn(8, 20, D).cumsum(1))
    dmm = DMM(**SIZES, emission="gaussian", min_scale=1e-3)
    dmm.standardize(x)
    svi = SVI(dmm.model, dmm.guide, PyroClippedAdam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(40)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])


# --- a least scale --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flows", [{}, FLOWS])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
def test_a_least_scale_is_added_at_every_step(emission: str, flows: dict[str, Any]) -> None:
    # Pyro inverts flows in the default dtype only.
    dtype = torch.float32 if flows else torch.float64
    batch = make_batch(dtype=dtype, emission=emission)
    losses = {}
    for per_step_sites in (False, True):
        for least in (0.0, 0.3):
            dmm = small_dmm(
                emission=emission,
                dtype=dtype,
                per_step_sites=per_step_sites,
                min_scale=least,
                **flows,
            )
            losses[per_step_sites, least] = loss_and_grads(dmm, batch, Trace_ELBO())
    assert_same_step(losses[False, 0.3], losses[True, 0.3], TOLERANCE[dtype])
    assert abs(losses[False, 0.3][0] - losses[False, 0.0][0]) > 0.1


def test_the_analytic_kl_includes_the_least_scale() -> None:
    dmm, batch = gaussian(min_scale=0.3), gaussian_batch()
    lengths = batch.mini_batch_seq_lengths
    posterior = dmm.posterior(dmm.encode(dmm.mini_batch(*batch)), lengths)
    z = posterior.rsample()
    previous = torch.cat([dmm.z_0.expand(4, 1, -1), z[:, :-1]], dim=1)
    before = torch.cat([dmm.z_q_0.expand(4, 1, -1), z[:, :-1]], dim=1)
    loc, scale = dmm.combiner(before, posterior.h)
    q = torch.distributions.Normal(loc, scale + 0.3)
    steps = torch.distributions.kl_divergence(q, torch.distributions.Normal(*dmm.trans(previous)))
    expected = (steps.sum(-1) * batch.mini_batch_mask).sum(-1)
    assert_close(posterior.kl_to(dmm.prior(lengths, 6)), expected, 1e-10)
    assert_close(posterior.log_prob(z), posterior.log_prob(z.clone()), 1e-10)
    assert math.isfinite(TraceMeanField_ELBO().loss(dmm.model, dmm.guide, *batch))


def test_a_least_scale_bounds_the_density_of_constant_data() -> None:
    dmm = small_dmm(emission="gaussian", min_scale=0.01)
    with torch.no_grad():
        dmm.emitter.lin_hidden_to_scale.weight.zero_()
        dmm.emitter.lin_hidden_to_scale.bias.fill_(-300.0)
        dmm.combiner.lin_hidden_to_scale.weight.zero_()
        dmm.combiner.lin_hidden_to_scale.bias.fill_(-300.0)
    loss, grads = loss_and_grads(dmm, make_batch(emission="gaussian"), Trace_ELBO())
    assert math.isfinite(loss)
    assert all(bool(g.isfinite().all()) for g in grads.values())


# --- what a state dict says of units --------------------------------------------------------------------


def test_a_partial_state_leaves_the_units_unchanged() -> None:
    dmm = gaussian()
    dmm.standardize(in_units(gaussian_batch()).mini_batch)
    loc = dmm.x_loc
    dmm.load_state_dict({k: v for k, v in dmm.state_dict().items() if k.startswith("emitter")}, strict=False)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        dmm.load_state_dict({"zz": torch.zeros(1)})
    assert dmm.x_loc is loc


def test_units_are_loaded_in_the_dtype_of_the_model() -> None:
    dmm = gaussian()
    dmm.standardize(in_units(gaussian_batch()).mini_batch)
    other = small_dmm(emission="gaussian", min_scale=0.1)
    other.load_state_dict(dmm.state_dict())
    assert other.x_loc.dtype == other.x_scale.dtype == torch.float32
    assert math.isfinite(Trace_ELBO().loss(other.model, other.guide, *make_batch(emission="gaussian")))


@pytest.mark.parametrize(
    ("emission", "units", "message"),
    [
        ("gaussian", {"x_loc": torch.zeros(D)}, "Missing key.*x_scale"),
        ("gaussian", {"x_loc": torch.zeros(3), "x_scale": torch.ones(3)}, "size mismatch for x_loc"),
        ("bernoulli", {"x_loc": torch.zeros(D), "x_scale": torch.ones(D)}, "Unexpected key.*x_loc"),
    ],
)
def test_units_that_do_not_fit_are_not_loaded(emission: str, units: dict[str, Any], message: str) -> None:
    dmm = small_dmm(emission=emission)
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        dmm.load_state_dict({**dmm.state_dict(), **units})


def test_a_constant_with_a_rounded_mean_keeps_its_unit() -> None:
    dmm = gaussian()
    x = torch.randn(1000, 6, D, dtype=torch.float64)
    x[..., 2] = 0.1
    dmm.standardize(x)
    assert dmm.x_scale[2] == 1
    with pytest.raises(ValueError, match=r"that torch.float32 holds, got one of .*e-61 in feature"):
        small_dmm(emission="gaussian").standardize(1e-60 * x.sign())


def test_units_and_a_user_defined_emission_exclude_each_other() -> None:
    class Own(DMM):
        def emission(self, *args: Any) -> Any:
            return super().emission(*args)

    with pytest.raises(ValueError, match=r"^emission: expected DMM's own for units, got Own.emission\(\)"):
        Own(**SIZES, emission="gaussian").standardize(torch.randn(2, 3, D))
