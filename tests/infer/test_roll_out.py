"""Draws of the model from some step on: controls, static covariates, past data, and starts of rows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import DMM
from dmm_fast.infer import counterfactual, forecast, generate, latents, reconstruct, sample_prior
from dmm_fast.infer._chain import Start, known_steps, roll_out
from tests.helpers_model import (
    LENGTHS,
    SIZES,
    assert_close,
    assert_means_agree,
    make_batch,
    missing_mask,
    set_linear,
    small_dmm,
    valid_steps,
)

B, T, D, Z = len(LENGTHS), max(LENGTHS), SIZES["input_dim"], SIZES["z_dim"]
U, S = 2, 1
NO_SCALE = -60.0
"""A pre-activation whose softplus is lost beside anything."""

KNOWN = {"control_dim": U, "static_dim": S}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "controls": KNOWN,
    "past in the transition": {"augment": "transition"},
    "past in the emission": {"augment": "emission"},
    "all": {"augment": "both", **KNOWN},
}
each_model = pytest.mark.parametrize("layers", MODELS.values(), ids=MODELS)


def quiet_dmm(units: bool = True, **layers: Any) -> DMM:
    """A model and a guide without noise; with ``units``, data and networks have different units."""
    dmm = small_dmm(dtype=torch.float64, emission="gaussian", **layers)
    for layer in (dmm.trans.lin_sig, dmm.emitter.lin_hidden_to_scale, dmm.combiner.lin_hidden_to_scale):
        set_linear(layer, 0.0, NO_SCALE)
    if units:
        dmm.standardize(make_batch(dtype=torch.float64, emission="gaussian", seed=5).mini_batch)
    return dmm


def known(dmm: DMM, *lead: int, seed: int = 8) -> tuple[Tensor | None, Tensor | None]:
    """Controls ``[*lead, U]`` and static covariates ``[*lead[:-1], S]`` if the model has them."""
    generator = torch.Generator().manual_seed(seed)
    controls = torch.randn(*lead, U, generator=generator, dtype=torch.float64)
    static = torch.randn(*lead[:-1], S, generator=generator, dtype=torch.float64)
    return (controls if dmm.control_dim else None), (static if dmm.static_dim else None)


def batch_of(dmm: DMM) -> tuple[Any, ...]:
    """Data with missing values in the form the model accepts."""
    made = make_batch(dtype=torch.float64, emission="gaussian")
    mask = missing_mask(made, 3)
    x = made.mini_batch.masked_fill(mask == 0, float("nan"))
    return (x, None, mask, made.mini_batch_seq_lengths, 1.0, *known(dmm, B, T))


def step_by_step(dmm: DMM, z: Tensor, x: Tensor, controls: Any, static: Any, steps: int) -> list[Tensor]:
    """The noiseless continuation of ``z [Z]`` and ``x [D]`` of one row, in the units of the data."""
    made = []
    unit, zero = (1.0, 0.0) if dmm.x_loc is None else (dmm.x_scale, dmm.x_loc)
    for t in range(steps):
        own = (x - zero) / unit
        past = own.masked_fill(x.isnan(), 0.0)
        of_transition = [z] + [past] * (dmm.augment in ("transition", "both"))
        of_transition += [] if controls is None else [controls[t], static]
        z = dmm.trans(torch.cat(of_transition))[0]
        loc = dmm.emitter(torch.cat([z] + [past] * (dmm.augment in ("emission", "both"))))[0]
        x = zero + unit * loc
        made.append(x)
    return made


def row(values: Tensor | None, b: int) -> Tensor | None:
    return None if values is None else values[b]


@pytest.mark.parametrize("units", [False, True], ids=["", "units"])
@each_model
@torch.no_grad()
def test_a_forecast_continues_from_the_end_of_each_row(layers: dict[str, Any], units: bool) -> None:
    dmm = quiet_dmm(units, **layers)
    batch = batch_of(dmm)
    controls, _ = known(dmm, B, 4, seed=9)
    z = latents(dmm, batch).z
    future = forecast(dmm, batch, 4, 2, controls=controls)
    for b, length in enumerate(LENGTHS):
        start = z[b, length - 1], batch[0][b, length - 1]
        expected = torch.stack(step_by_step(dmm, *start, row(controls, b), row(batch[6], b), 4))
        for draw in future:
            assert_close(draw[b], expected, 1e-12)


@each_model
@torch.no_grad()
def test_generated_sequences_start_from_z_0(layers: dict[str, Any]) -> None:
    dmm = quiet_dmm(**layers)
    controls, static = known(dmm, 3, 5)
    x = generate(dmm, 3, 5, controls=controls, static=static)
    missing = torch.full((D,), float("nan"), dtype=torch.float64)
    expected = [step_by_step(dmm, dmm.z_0, missing, row(controls, b), row(static, b), 5) for b in range(3)]
    assert_close(x, torch.stack([torch.stack(steps) for steps in expected]), 1e-12)
    drawn = sample_prior(dmm, 5, 2, controls=controls, static=static)
    if controls is not None:
        assert drawn.z.shape == (2, 3, 5, Z)
        assert_close(drawn.x, x.expand(2, 3, 5, D), 1e-12)
        one = sample_prior(dmm, 5, controls=controls[1], static=static[1])
        assert_close(one.x, x[1], 1e-12)
    else:
        assert drawn.z.shape == (2, 5, Z)
        assert_close(drawn.x, x[:2], 1e-12)
        assert sample_prior(dmm, 5).x.shape == (5, D)


@pytest.mark.parametrize("start", [0, 1, 3, T - 1])
@pytest.mark.parametrize("layers", [KNOWN, MODELS["all"]], ids=["controls", "all"])
@torch.no_grad()
def test_a_counterfactual_leaves_the_factual_at_its_start(layers: dict[str, Any], start: int) -> None:
    dmm = quiet_dmm(**layers)
    batch = batch_of(dmm)
    controls, _ = known(dmm, B, T - start, seed=9)
    assert controls is not None
    past_end = ~valid_steps()[:, start:]
    z = latents(dmm, batch).z
    other = counterfactual(dmm, batch, controls.masked_fill(past_end[..., None], float("nan")), start, 2)
    assert other.z.shape == (2, B, T - start, Z)
    assert other.x.shape == (2, B, T - start, D)
    nothing = torch.full((D,), float("nan"), dtype=torch.float64)
    for b, length in enumerate(LENGTHS):
        steps = max(length - start, 0)
        before = (z[b, start - 1], batch[0][b, start - 1]) if start else (dmm.z_0, nothing)
        expected = torch.zeros(T - start, D, dtype=torch.float64)
        if steps:
            expected[:steps] = torch.stack(step_by_step(dmm, *before, controls[b], batch[6][b], steps))
        for draw in other.x:
            torch.testing.assert_close(draw[b], expected, rtol=1e-12, atol=1e-12)


@each_model
def test_draws_have_the_noise_of_the_model(layers: dict[str, Any]) -> None:
    """Two steps of the model with noise, compared with Pyro's draws of its sites."""
    dmm = small_dmm(dtype=torch.float64, per_step_sites=True, **layers)
    N = 4000
    controls, static = known(dmm, 1, 2)
    rows = [None if each is None else each.expand(N, *each.shape[1:]) for each in (controls, static)]
    x = generate(dmm, N, 2, controls=rows[0], static=rows[1], seed=1)
    torch.manual_seed(2)
    lengths = torch.full((N,), 2)
    with torch.no_grad():
        by_sites = dmm.model(None, None, None, lengths, 1.0, *rows)
    assert_means_agree(x, torch.stack(list(by_sites), 1))
    assert_means_agree(x[:, 0] * x[:, 1], by_sites[0] * by_sites[1])


@each_model
def test_a_seed_repeats_each_call(layers: dict[str, Any]) -> None:
    dmm = small_dmm(dtype=torch.float64, emission="gaussian", **layers)
    batch = batch_of(dmm)
    (controls, static), (later, _) = known(dmm, B, T), known(dmm, B, 2)
    given = {"controls": controls, "static": static}
    calls: list[Callable[..., Tensor]] = [
        lambda **k: forecast(dmm, batch, 2, 3, controls=later, **k),
        lambda **k: generate(dmm, B, T, **given, **k),
        lambda **k: torch.cat(sample_prior(dmm, T, 3, **given, **k), -1),
    ]
    if controls is not None:
        calls.append(lambda **k: torch.cat(counterfactual(dmm, batch, controls, 0, **k), -1))
    state = torch.get_rng_state()
    for call in calls:
        first, again, other = (call(seed=seed) for seed in (4, 4, 5))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        by_generator = [call(generator=torch.Generator().manual_seed(4)) for _ in range(2)]
        assert torch.equal(*by_generator)
        generator = torch.Generator().manual_seed(4)
        assert not torch.equal(call(generator=generator), call(generator=generator))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("augment", [None, "both"])
@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_at_a_low_temperature_draws_are_the_most_probable(emission: str, augment: str | None) -> None:
    dmm = small_dmm(dtype=torch.float64, emission=emission, augment=augment)
    assert generate(dmm, 20, 3, temperature=1e-6, seed=0).std(0).max() == 0
    assert generate(dmm, 20, 3, temperature=1.0, seed=0).std(0).max() > 0
    one, other = (
        forecast(dmm, make_batch(dtype=torch.float64), 3, 50, temperature=t, seed=0) for t in (1e-6, 1.0)
    )
    assert one.var(0).mean() < other.var(0).mean()


@pytest.mark.parametrize("emission", ["bernoulli", "nade"])
def test_a_temperature_divides_logits_and_multiplies_scales(emission: str) -> None:
    dmm, N, logit, scale = small_dmm(dtype=torch.float64, emission=emission), 4000, 0.4, 1.5
    for weight in dmm.emitter.parameters():  # of a NADE too: no feature reads those before it
        weight.data.zero_()
    dmm.emitter.lin_hidden_to_input.bias.data.fill_(logit)
    set_linear(dmm.trans.lin_sig, 0.0, math.log(math.expm1(scale)))
    with torch.no_grad():
        loc, _ = dmm.trans(dmm.z_0)
        torch.manual_seed(0)
        drawn = roll_out(dmm, Start(dmm.z_0.expand(N, -1)), known_steps(dmm, N, 1, None, None), 0.5)
    assert_means_agree(drawn.x, 1 / (1 + math.exp(-logit / 0.5)))
    assert_means_agree((drawn.z[:, 0] - loc) ** 2, (0.5 * scale) ** 2)


CONTROLS = torch.zeros(B, 2, U)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d, b, c, e: forecast(d, b, 2, controls=CONTROLS),
            r"controls: expected None for a model of con",
        ),
        (lambda d, b, c, e: forecast(c, e, 2), r"controls: expected "),
        (lambda d, b, c, e: forecast(c, e, 3, controls=CONTROLS), r"controls: expected shape \(4, 3, 2\)"),
        (lambda d, b, c, e: forecast(c, e, 2, controls=CONTROLS.double()), r"controls: expected float32"),
        (lambda d, b, c, e: forecast(c, e, 2, controls=CONTROLS / 0), r"controls: expected finite numbers"),
        (lambda d, b, c, e: generate(c, 3, 2, controls=CONTROLS), r"controls: expected shape \(3, 2, 2\)"),
        (lambda d, b, c, e: generate(d, B, 2, static=CONTROLS[:, 0]), r"static: expected None"),
        (lambda d, b, c, e: sample_prior(c, 2, 2, controls=3), r"controls: expected "),
        (lambda d, b, c, e: sample_prior(d, 0), r"num_steps: expected a positive int, got 0"),
        (lambda d, b, c, e: sample_prior(d, 2, 1.5), r"num_samples: expected a positive int, got float 1.5"),
        (lambda d, b, c, e: counterfactual(d, b, CONTROLS, 4), r"dmm: expected a model with controls, got "),
        (lambda d, b, c, e: counterfactual(c, e, CONTROLS, 6), r"start: expected an int from 0 to 5, got 6"),
        (lambda d, b, c, e: counterfactual(c, e, CONTROLS, 3), r"controls: expected shape \(4, 3, 2\), got"),
        (lambda d, b, c, e: counterfactual(c, e, None, 4), r"controls: expected "),
        (lambda d, b, c, e: generate(d, 1, 1, generator=3), r"generator: expected Generator .*, got int 3"),
        (
            lambda d, b, c, e: generate(d, 1, 1, seed=1, generator=torch.Generator()),
            r"generator: expected None beside a seed, got both",
        ),
        (
            lambda d, b, c, e: generate(d, 1, 1, temperature=0),
            r"temperature: expected a positive number, got",
        ),
        (
            lambda d, b, c, e: forecast(small_dmm(emission="poisson"), b, 1, temperature=0.5),
            r"temperature: expected 1 where the emission is neither Bernoulli nor NADE, got 0.5 with Poisson",
        ),
    ],
)
def test_invalid_arguments_are_named(call: Callable[..., Any], message: str) -> None:
    """A model without controls and its batch, and one with controls and its."""
    batch = make_batch()
    given = (small_dmm(), batch, small_dmm(control_dim=U), (*batch, 1.0, torch.zeros(B, T, U)))
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        call(*given)


def test_reconstructions_by_draws_have_the_means_of_those_at_the_mean() -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    drawn = reconstruct(dmm, batch, 3000, mean=False, seed=1)
    assert bool(((drawn == 0) | (drawn == 1)).all())
    keep = valid_steps()
    assert bool((drawn[:, ~keep] == 0).all())
    assert_means_agree(drawn[:, keep], reconstruct(dmm, batch, 3000, seed=2)[:, keep])
