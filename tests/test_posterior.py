"""The posterior: density and gradient of its draws and of other values, and the KL."""

import copy

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Normal, kl_divergence

from dmm_fast.distributions import MeanFieldPosterior
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    assert_close,
    assert_means_agree,
    gradients,
    loss_and_grads,
    make_batch,
    posterior_of,
    small_dmm,
    valid_steps,
)

B, T, Z, D = len(LENGTHS), max(LENGTHS), 3, 5


# --- the density of a draw ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["posterior", "flows"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_draw_has_the_density_and_gradient_of_the_general_path(kind: str, lead: tuple[int, ...]) -> None:
    """The general path also differentiates through the value, which gives the total derivative."""
    torch.set_default_dtype(torch.float64)  # Pyro's inverse of a flow starts from zeros of the default dtype
    dmm = small_dmm(dtype=torch.float64, **(FLOWS if kind == "flows" else {}))
    q = posterior_of(dmm, torch.float64).expand((*lead, B))
    z = q.rsample()
    drawn, general = q.log_prob(z), q.log_prob(z.clone())
    assert_close(drawn, general, 1e-10)
    weight = torch.linspace(0.5, 2.0, B, dtype=torch.float64)
    ours, theirs = ((v * weight).sum() for v in (drawn, general))
    ours_grads, their_grads = gradients(ours, dmm), gradients(theirs, dmm)
    # The locations cancel; in the general path only rounding errors remain.
    scale = max(float(g.norm()) for g in their_grads.values())
    assert len(ours_grads) > 0
    for name, grad in their_grads.items():
        mine = ours_grads.get(name, torch.zeros_like(grad))
        assert float((mine - grad).norm()) < 1e-10 * scale, name


def test_the_density_of_a_draw_equals_that_of_its_steps() -> None:
    dmm = small_dmm(dtype=torch.float64)
    for q, kind in ((posterior_of(dmm, torch.float64), "posterior"), (None, "prior")):
        d = q if q is not None else dmm.prior(torch.tensor(LENGTHS), T)
        z = d.rsample()
        z_prev = (dmm.z_q_0 if kind == "posterior" else dmm.z_0).expand(B, -1)
        total = torch.zeros(B, dtype=torch.float64)
        for t in range(T):
            step = dmm.combiner(z_prev, q.h[:, t]) if q is not None else dmm.trans(z_prev)
            total = total + Normal(*step).log_prob(z[:, t]).sum(-1) * valid_steps()[:, t]
            z_prev = z[:, t]
        assert_close(d.log_prob(z), total, 1e-12)


def test_only_the_tensor_drawn_last_is_treated_as_the_draw() -> None:
    """A later draw, another value and an expanded copy each have their own density."""
    q = posterior_of(small_dmm(dtype=torch.float64), torch.float64)
    first = q.rsample()
    density = q.log_prob(first)
    wide = q.expand((2, B))
    assert_close(wide.log_prob(first)[1], density, 1e-10)
    second = q.rsample()
    assert_close(q.log_prob(first), density, 1e-10)
    assert not torch.allclose(q.log_prob(second), density)
    assert not torch.allclose(q.log_prob(second + 1.0), q.log_prob(second))


@pytest.mark.parametrize("kind", ["prior", "posterior", "flows"])
def test_the_density_of_a_sample_without_gradient_still_has_one(kind: str) -> None:
    """``sample`` detaches the value but not the parameters, as score-function estimators need."""
    torch.set_default_dtype(torch.float64)  # Pyro's inverse of a flow starts from zeros of the default dtype
    dmm = small_dmm(dtype=torch.float64, **(FLOWS if kind == "flows" else {}))
    q = dmm.prior(torch.tensor(LENGTHS), T) if kind == "prior" else posterior_of(dmm, torch.float64)
    z = q.sample()
    assert not z.requires_grad
    log_prob = q.log_prob(z)
    assert log_prob.requires_grad
    score, expected = gradients(log_prob.sum(), dmm), gradients(q.log_prob(z.clone()).sum(), dmm)
    assert score.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(score[name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1")
def test_the_density_of_flows_integrates_the_jacobian() -> None:
    """With one latent and one step, the density of the flowed draw sums to one on a fine grid."""
    torch.set_default_dtype(torch.float64)  # Pyro's inverse of a flow starts from zeros of the default dtype
    dmm = small_dmm(dtype=torch.float64, z_dim=1, num_iafs=2, iaf_dim=6)
    lengths = torch.tensor([1])
    q = dmm.posterior(dmm.rnn(torch.ones(1, 1, D).double(), dmm.h_0[0, 0], lengths), lengths)
    grid = torch.linspace(-60, 60, 60001, dtype=torch.float64)
    density = q.log_prob(grid[:, None, None, None]).exp().flatten()
    assert abs(torch.trapezoid(density, grid).item() - 1) < 1e-6
    assert_means_agree(q.rsample((4000,)).flatten(), torch.trapezoid(density * grid, grid).item())


def test_a_scale_that_underflows_leaves_density_gradient_and_kl_finite() -> None:
    dmm = small_dmm()
    with torch.no_grad():
        dmm.combiner.lin_hidden_to_scale.bias.fill_(-300.0)
    q = posterior_of(dmm)
    assert bool((dmm.combiner(dmm.z_q_0, q.h[:, 0])[1] == 0).all()), "the scale must underflow"
    z = q.rsample()
    p = dmm.prior(torch.tensor(LENGTHS), T)
    log_prob, kl = q.log_prob(z), kl_divergence(q, p)
    # -log(scale) = 300 to within the rest of the pre-activation, for every latent of a step.
    per_latent = log_prob / (torch.tensor(LENGTHS) * Z)
    assert bool(((per_latent > 250) & (per_latent < 350)).all())
    assert bool(((kl / (torch.tensor(LENGTHS) * Z)) > 250).all())
    assert bool(kl.isfinite().all())
    for total in (log_prob.sum(), kl.sum()):
        grads = gradients(total, dmm)
        assert grads
        assert all(bool(g.isfinite().all()) for g in grads.values())


def test_the_density_of_a_prior_whose_scale_underflows_is_finite() -> None:
    dmm = small_dmm()
    with torch.no_grad():
        dmm.trans.lin_sig.weight.zero_()
        dmm.trans.lin_sig.bias.fill_(-300.0)
        # With the gate closed and zero weights, the location is exactly 0 in every backend.
        dmm.trans.lin_gate_hidden_to_z.weight.zero_()
        dmm.trans.lin_gate_hidden_to_z.bias.fill_(-1e4)
        dmm.trans.lin_z_to_loc.bias.zero_()
        dmm.z_0.zero_()
    p = dmm.prior(torch.tensor([1]), 1)
    assert 850 < p.log_prob(torch.zeros(1, 1, Z)).item() < 900


# --- KL -------------------------------------------------------------------------------------------


def test_kl_is_the_sum_of_the_steps_at_the_draw() -> None:
    dmm = small_dmm(dtype=torch.float64)
    q, p = posterior_of(dmm, torch.float64), dmm.prior(torch.tensor(LENGTHS), T)
    z = q.rsample()
    total = torch.zeros(B, dtype=torch.float64)
    z_q, z_p = dmm.z_q_0.expand(B, -1), dmm.z_0.expand(B, -1)
    for t in range(T):
        step = kl_divergence(Normal(*dmm.combiner(z_q, q.h[:, t])), Normal(*dmm.trans(z_p)))
        total = total + step.sum(-1) * valid_steps()[:, t]
        z_q = z_p = z[:, t]
    kl = kl_divergence(q, p)
    assert kl.shape == (B,)
    assert_close(kl, total, 1e-12)
    for name, grad in gradients(total.sum(), dmm).items():
        assert_close(gradients(kl.sum(), dmm)[name], grad, 1e-10, name)


def test_kl_has_the_mean_of_the_sampled_log_ratio_and_less_variance() -> None:
    dmm = small_dmm(dtype=torch.float64)
    q, p = posterior_of(dmm, torch.float64), dmm.prior(torch.tensor(LENGTHS), T)
    with torch.no_grad():
        z = q.rsample((4000,))
        kl, log_ratio = kl_divergence(q, p), q.log_prob(z) - p.log_prob(z)
    assert kl.shape == log_ratio.shape == (4000, B)
    assert_means_agree(kl - log_ratio, torch.zeros(B))
    assert bool((kl.var(0) < log_ratio.var(0)).all())
    assert bool((kl >= 0).all())


def test_kl_before_any_draw_is_an_error() -> None:
    dmm = small_dmm()
    q, p = posterior_of(dmm), dmm.prior(torch.tensor(LENGTHS), T)
    with pytest.raises(RuntimeError, match=r"^posterior: expected a draw before this"):
        kl_divergence(q, p)
    q.rsample()
    with pytest.raises(RuntimeError, match=r"^posterior: expected a draw"):
        kl_divergence(q.expand((2, B)), p)


def test_flows_have_no_analytic_kl_and_the_mean_field_elbo_samples_it() -> None:
    dmm = small_dmm(dtype=torch.float64, **FLOWS)
    q, p = posterior_of(dmm, torch.float64), dmm.prior(torch.tensor(LENGTHS), T)
    z = q.rsample()
    with pytest.raises(NotImplementedError, match="flows"):
        kl_divergence(q, p)
    batch = make_batch(dtype=torch.float64)
    loss, _ = loss_and_grads(dmm, batch, TraceMeanField_ELBO(), seed=6)
    torch.manual_seed(6)
    z = q.rsample()
    likelihood = dmm.emission(z, batch.mini_batch_seq_lengths).log_prob(batch.mini_batch)
    expected = q.log_prob(z) - p.log_prob(z) - likelihood
    assert loss == pytest.approx(expected.sum().item(), rel=1e-10)


# --- mean field -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"min_scale": 0.3}], ids=str)
@pytest.mark.parametrize("by", ["weights", "network"])
def test_moments_of_a_mean_field_posterior_equal_those_of_its_draws(
    options: dict[str, float], by: str
) -> None:
    q = posterior_of(small_dmm(inference="mf-r", **options))
    assert isinstance(q, MeanFieldPosterior)
    if by == "network":
        q = MeanFieldPosterior(q.h, small_dmm(inference="mf-r").combiner, Z, q.lengths, (), q.min_scale)
    torch.manual_seed(0)
    draws = q.sample((4000,))
    inside = valid_steps()
    assert_means_agree(draws[:, inside], q.mean[inside])
    assert_means_agree((draws - q.mean)[:, inside].square(), q.variance[inside])
    for moment in (q.mean, q.variance, q.expand((3, B)).mean[1]):
        assert moment.shape == (B, T, Z)
        assert bool((moment[~inside] == 0).all())


def test_moments_of_flows_and_of_chains_have_no_closed_form() -> None:
    for q in (posterior_of(small_dmm(inference="mf-r", **FLOWS)), posterior_of(small_dmm())):
        for moment in ("mean", "variance"):
            with pytest.raises(
                NotImplementedError, match=f"^{moment}: {type(q).__name__} has no closed form"
            ):
                getattr(q, moment)


@pytest.mark.parametrize("inference", ["st-r", "mf-r"])
def test_a_model_with_flows_can_be_copied_after_a_step(inference: str) -> None:
    dmm, batch = small_dmm(inference=inference, **FLOWS), make_batch()
    before = loss_and_grads(dmm, batch, Trace_ELBO())[0]
    assert loss_and_grads(copy.deepcopy(dmm), batch, Trace_ELBO())[0] == before
