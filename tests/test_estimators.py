"""The DMM under Pyro's own estimators, optimizers, effect handlers and predictive sampling."""

import math
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
)
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from benchmarks.baseline import BaselineDMM
from dmm_fast import DMM
from dmm_fast.data import get_mini_batch
from dmm_fast.infer import log_weights
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    SIZES,
    TOLERANCE,
    assert_close,
    assert_means_agree,
    assert_same_step,
    loss_and_grads,
    make_batch,
    repeat,
    small_dmm,
    stir,
)

B, T, D, Z = len(LENGTHS), max(LENGTHS), 5, 3


def step_at_a_draw(dmm: DMM, batch: Any, seed: int = 5) -> dict[str, Tensor]:
    """``[B]`` each, from ordinary distributions: log p(x|z), log p(z), log q(z), and the steps' KL."""
    torch.manual_seed(seed)
    x, _, mask, lengths = batch
    h = dmm.rnn(x, dmm.h_0[0, 0], lengths)
    z_q, z_p = dmm.z_q_0.expand(len(x), -1), dmm.z_0.expand(len(x), -1)
    total = {name: torch.zeros(len(x), dtype=x.dtype) for name in ("x", "p", "q", "kl")}
    for t in range(x.shape[1]):
        q, p = Normal(*dmm.combiner(z_q, h[:, t])), Normal(*dmm.trans(z_p))
        z = q.rsample()
        terms = {
            "x": Bernoulli(dmm.emitter(z)).log_prob(x[:, t]),
            "p": p.log_prob(z),
            "q": q.log_prob(z),
            "kl": kl_divergence(q, p),
        }
        for name, term in terms.items():
            total[name] = total[name] + term.sum(-1) * mask[:, t]
        z_q = z_p = z
    return total


# --- ELBOs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("analytic", [False, True])
def test_sampled_and_analytic_elbo_are_sums_over_ordinary_steps(analytic: bool, factor: float) -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    elbo = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    ours = loss_and_grads(dmm, batch, elbo, factor)
    dmm.zero_grad(set_to_none=True)
    terms = step_at_a_draw(dmm, batch)
    kl = terms["kl"] if analytic else terms["q"] - terms["p"]
    loss = (factor * kl - terms["x"]).sum()
    loss.backward()
    theirs = (loss.item(), {name: p.grad for name, p in dmm.named_parameters()})
    assert_same_step(ours, theirs, 1e-10)


def test_the_analytic_elbo_has_the_mean_of_the_sampled_one() -> None:
    dmm, batch = small_dmm(), make_batch()
    sampled, analytic = (
        elbo(num_particles=3000, vectorize_particles=True).loss(dmm.model, dmm.guide, *batch)
        for elbo in (Trace_ELBO, TraceMeanField_ELBO)
    )
    spread = log_weights(dmm, batch, 500).sum(-1).std().item()
    assert spread > 0.5, "there is something to integrate out"
    assert abs(sampled - analytic) < 4.5 * spread * math.sqrt(2 / 3000)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_sequential_particles_average_their_losses(elbo: type[Any], per_step_sites: bool) -> None:
    dmm, batch = small_dmm(per_step_sites=per_step_sites), make_batch()
    torch.manual_seed(4)
    singles = [elbo().loss(dmm.model, dmm.guide, *batch, 0.5) for _ in range(3)]
    torch.manual_seed(4)
    loss = elbo(num_particles=3).loss(dmm.model, dmm.guide, *batch, 0.5)
    assert loss == pytest.approx(sum(singles) / 3, rel=1e-5)
    assert len(set(singles)) == 3


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("layers", [{}, FLOWS])
def test_vectorised_particles_average_their_weights(layers: dict[str, Any], per_step_sites: bool) -> None:
    dmm = small_dmm(per_step_sites=per_step_sites, **layers)
    batch = make_batch()
    torch.manual_seed(4)
    weights = log_weights(dmm, batch, 7).detach()
    assert weights.shape == (7, B)
    torch.manual_seed(4)
    # With the nesting given, Pyro makes no draw to determine it.
    elbo = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    assert elbo.loss(dmm.model, dmm.guide, *batch) == pytest.approx(-weights.mean(0).sum().item(), rel=1e-5)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_vectorised_and_sequential_particles_have_equal_means_and_gradients(elbo: type[Any]) -> None:
    dmm, batch = small_dmm(), make_batch()
    at_once = loss_and_grads(dmm, batch, elbo(num_particles=1500, vectorize_particles=True))
    in_turn = repeat(150, lambda: elbo().loss(dmm.model, dmm.guide, *batch))
    assert abs(in_turn.mean() - at_once[0]) < 4.5 * in_turn.std() * math.sqrt(1 / 150 + 1 / 1500)
    rows = []
    for seed in range(60):
        grads = loss_and_grads(dmm, batch, elbo(), seed=seed)[1]
        rows.append(torch.cat([g.flatten() for g in grads.values()]))
    draws = torch.stack(rows).double()
    mean = torch.cat([g.flatten() for g in at_once[1].values()]).double()
    assert bool(mean.isfinite().all())
    # The mean of 60 gradients differs from the exact one by about their spread over sqrt(60).
    expected = (draws.var(0).sum() * (1 / 60 + 1 / 1500)).sqrt()
    assert (draws.mean(0) - mean).norm() < 2 * expected
    assert expected < 0.5 * mean.norm(), "else the comparison says nothing"


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("layers", [{}, FLOWS])
def test_renyi_elbo_of_order_zero_is_the_importance_weighted_bound_of_each_sequence(
    layers: dict[str, Any], per_step_sites: bool
) -> None:
    dmm = small_dmm(per_step_sites=per_step_sites, **layers)
    batch = make_batch()
    elbo = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    loss, grads = loss_and_grads(dmm, batch, elbo, seed=4)
    assert all(bool(g.isfinite().all()) for g in grads.values())
    dmm.zero_grad(set_to_none=True)
    torch.manual_seed(4)
    bound = (log_weights(dmm, batch, 5).logsumexp(0) - math.log(5)).sum()
    assert loss == pytest.approx(-bound.item(), rel=1e-5)
    (-bound).backward()
    for name, p in dmm.named_parameters():
        assert p.grad is not None
        assert_close(grads[name], p.grad, 1e-4, name)


def tutorial_step(cls: type[Any], elbo: Any, num_samples: int, **kwargs: Any) -> Any:
    """A step of the tutorial with several samples of each z in the guide."""
    torch.manual_seed(12)
    dmm = stir(cls(**SIZES, **kwargs))
    x, _, _, lengths = make_batch((4, 3, 1))
    batch = get_mini_batch(torch.arange(3), x, lengths)
    pyro.clear_param_store()
    guide = config_enumerate(dmm.guide, default="parallel", num_samples=num_samples, expand=False)
    torch.manual_seed(13)
    loss = elbo.loss_and_grads(dmm.model, guide, *batch, 0.6)
    return loss, {name: p.grad for name, p in dmm.named_parameters()}


@pytest.mark.parametrize("flows", [{}, FLOWS])
@pytest.mark.parametrize("elbo", [TraceTMC_ELBO, TraceEnum_ELBO])
def test_tensor_monte_carlo_and_enumeration_of_steps(elbo: type[Any], flows: dict[str, Any]) -> None:
    ours = tutorial_step(DMM, elbo(), 3, per_step_sites=True, **flows)
    theirs = tutorial_step(BaselineDMM, elbo(), 3, **flows)
    assert math.isfinite(ours[0])
    assert_same_step(ours, theirs, TOLERANCE[torch.float32])


def test_tensor_monte_carlo_with_more_samples_has_a_tighter_bound() -> None:
    two, eight = (repeat(15, partial(tmc_loss, n)) for n in (2, 8))
    spread = ((two.var() + eight.var()) / 15).sqrt()
    assert two.mean() - eight.mean() > 3 * spread


def tmc_loss(num_samples: int) -> float:
    dmm = small_dmm_once()
    guide = config_enumerate(dmm.guide, default="parallel", num_samples=num_samples, expand=False)
    return TraceTMC_ELBO().loss(dmm.model, guide, *make_batch((3, 2)))


def small_dmm_once() -> DMM:
    """The small per-step model, built without changing the random state."""
    state = torch.get_rng_state()
    dmm = small_dmm(per_step_sites=True)
    torch.set_rng_state(state)
    return dmm


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("layers", [{}, FLOWS])
@pytest.mark.parametrize("per_step_sites", [False, True])
def test_reweighted_wake_sleep(per_step_sites: bool, layers: dict[str, Any], vectorize: bool) -> None:
    """Wake updates of model and guide; the guide's score needs log q at a detached draw."""
    dmm, batch = small_dmm(per_step_sites=per_step_sites, **layers), make_batch()
    rws = ReweightedWakeSleep(num_particles=4, insomnia=1.0, vectorize_particles=vectorize)
    (wake_theta, wake_phi), grads = loss_and_grads(dmm, batch, rws)
    assert math.isfinite(wake_theta)
    assert math.isfinite(wake_phi)
    for name, grad in grads.items():
        assert grad is not None, name
        assert bool(grad.isfinite().all()), name
    assert bool((grads["combiner.lin_z_to_hidden.weight"] != 0).any())
    assert bool((grads["trans.lin_z_to_loc.weight"] != 0).any())


# --- optimisation ---------------------------------------------------------------------------------


def steady_loss(dmm: DMM, batch: Any) -> float:
    torch.manual_seed(20)
    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True)
    return elbo.loss(dmm.model, dmm.guide, *batch)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_twenty_steps_of_svi_lower_the_loss(elbo: type[Any], emission: str, per_step_sites: bool) -> None:
    dmm = small_dmm(emission=emission, per_step_sites=per_step_sites)
    batch = make_batch(emission=emission)
    pyro.clear_param_store()
    before = steady_loss(dmm, batch)
    start = {name: p.detach().clone() for name, p in dmm.named_parameters()}
    svi = SVI(dmm.model, dmm.guide, ClippedAdam({"lr": 0.02, "clip_norm": 10.0}), elbo())
    for _ in range(20):
        svi.step(*batch, 0.9)
    assert steady_loss(dmm, batch) < 0.97 * before
    for name, p in dmm.named_parameters():
        assert not torch.equal(p, start[name]), name


def test_an_elbo_module_with_a_torch_optimizer_lowers_the_loss() -> None:
    dmm, batch = small_dmm(**FLOWS), make_batch()
    before = steady_loss(dmm, batch)
    loss_fn = Trace_ELBO()(dmm.model, dmm.guide)
    optimizer = torch.optim.Adam(dmm.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_fn(*batch, annealing_factor=0.9)
        assert loss.shape == ()
        loss.backward()
        optimizer.step()
    assert steady_loss(dmm, batch) < 0.97 * before


def test_evaluate_loss_is_the_loss_without_gradients() -> None:
    dmm, batch = small_dmm(), make_batch()
    svi = SVI(dmm.model, dmm.guide, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    expected, _ = loss_and_grads(dmm, batch, Trace_ELBO())
    dmm.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    assert svi.evaluate_loss(*batch) == pytest.approx(expected, rel=1e-6)
    assert all(p.grad is None for p in dmm.parameters())


# --- effect handlers ------------------------------------------------------------------------------


def test_scaling_both_sides_scales_the_loss_and_its_gradient() -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    loss, grads = loss_and_grads(dmm, batch, Trace_ELBO())

    class Scaled:
        model, guide = poutine.scale(dmm.model, 0.25), poutine.scale(dmm.guide, 0.25)
        zero_grad, named_parameters = dmm.zero_grad, dmm.named_parameters

    scaled, scaled_grads = loss_and_grads(Scaled, batch, Trace_ELBO())
    assert scaled == pytest.approx(loss / 4, rel=1e-12)
    for name, grad in grads.items():
        assert_close(scaled_grads[name], grad / 4, 1e-12, name)


@pytest.mark.parametrize("per_step_sites", [False, True])
def test_conditioning_a_model_without_data_equals_passing_the_data(per_step_sites: bool) -> None:
    dmm, (x, _, mask, lengths) = small_dmm(per_step_sites=per_step_sites), make_batch()
    if per_step_sites:
        data = {f"obs_x_{t + 1}": x[:, t] for t in range(T)}
        latents = {f"z_{t + 1}": torch.randn(B, Z) for t in range(T)}
    else:
        data, latents = {"obs_x": x}, {"z": torch.randn(B, T, Z)}
    conditioned = poutine.trace(poutine.condition(dmm.model, {**data, **latents}))
    given = poutine.trace(poutine.condition(dmm.model, latents))
    torch.testing.assert_close(
        conditioned.get_trace(None, None, mask, lengths).log_prob_sum(),
        given.get_trace(x, None, mask, lengths).log_prob_sum(),
    )


@pytest.mark.parametrize("per_step_sites", [False, True])
def test_unconditioning_draws_x(per_step_sites: bool) -> None:
    dmm, batch = small_dmm(per_step_sites=per_step_sites), make_batch()
    drawn = poutine.uncondition(dmm.model)(*batch)
    drawn = torch.stack(drawn, 1) if per_step_sites else drawn
    assert drawn.shape == (B, T, D)
    assert not torch.equal(drawn, batch.mini_batch)


# --- prediction -----------------------------------------------------------------------------------


def site_shapes(per_step_sites: bool, num_samples: int) -> dict[str, tuple[int, ...]]:
    if not per_step_sites:
        return {"z": (num_samples, B, T, Z), "obs_x": (num_samples, B, T, D)}
    shapes = {f"z_{t}": (num_samples, B, Z) for t in range(1, T + 1)}
    return shapes | {f"obs_x_{t}": (num_samples, B, D) for t in range(1, T + 1)}


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_prior_prediction(parallel: bool, per_step_sites: bool) -> None:
    dmm = small_dmm(per_step_sites=per_step_sites)
    predictive = Predictive(dmm.model, num_samples=40, parallel=parallel)
    samples = predictive(None, None, None, torch.tensor(LENGTHS))
    shapes = {name: tuple(value.shape) for name, value in samples.items()}
    assert shapes == site_shapes(per_step_sites, 40)
    for value in samples.values():
        assert bool((value[0] != value[1]).any())


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_prediction(parallel: bool, per_step_sites: bool) -> None:
    dmm, batch = small_dmm(per_step_sites=per_step_sites), make_batch()
    model = poutine.uncondition(dmm.model)
    shapes = site_shapes(per_step_sites, 30)
    predictive = Predictive(
        model, guide=dmm.guide, num_samples=30, parallel=parallel, return_sites=tuple(shapes)
    )
    samples = predictive(*batch)
    assert {name: tuple(value.shape) for name, value in samples.items()} == shapes


def test_posterior_predictions_have_the_mean_of_the_posterior() -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    with torch.no_grad():
        h = dmm.rnn(batch.mini_batch, dmm.h_0[0, 0], batch.mini_batch_seq_lengths)
        z = dmm.posterior(h, batch.mini_batch_seq_lengths).rsample((3000,))
        probs = dmm.emission(z, batch.mini_batch_seq_lengths).mean
    valid = batch.mini_batch_mask.bool()
    for parallel in (False, True):
        samples = Predictive(
            poutine.uncondition(dmm.model),
            guide=dmm.guide,
            num_samples=3000 if parallel else 200,
            parallel=parallel,
            return_sites=("z", "obs_x"),
        )(*batch)
        assert_means_agree(samples["z"][:, valid], z[:, valid])
        assert_means_agree(samples["obs_x"][:, valid], probs[:, valid])
        assert bool((samples["obs_x"][:, ~valid] == 0).all())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_step_sites", [False, True])
def test_a_traced_elbo_is_the_elbo(per_step_sites: bool) -> None:
    dmm, batch = small_dmm(per_step_sites=per_step_sites), make_batch()
    losses = []
    for elbo in (JitTrace_ELBO(), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(elbo.loss(dmm.model, dmm.guide, batch[0], None, *batch[2:]))
    assert losses[0] == losses[1]
