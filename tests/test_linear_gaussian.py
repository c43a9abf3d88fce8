"""A linear Gaussian DMM: importance sampling compared with the exact likelihood."""

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from dmm_fast import DMM
from dmm_fast.data import LinearGaussianSet, linear_gaussian
from dmm_fast.infer import Batch, importance_nll, log_weights
from tests.helpers_model import assert_close, set_linear

Z, D, N, T = 2, 3, 3, 6
PARTICLES = 6000
GUIDE = ("combiner.", "rnn.", "iafs_modules.", "z_q_0", "h_0")


def inverse_softplus(scale: Tensor) -> Tensor:
    return scale.expm1().log()


def linear_gaussian_dmm(exact: LinearGaussianSet, **guide: Any) -> DMM:
    """A DMM with the p(x, z) of ``exact``: no gate, constant scales, a linear emitter.

    ``v = relu(v) - relu(-v)``: with hidden units z and -z the emitter is linear.
    """
    z_dim, x_dim = len(exact.z_0), len(exact.emission_bias)
    dmm = DMM(x_dim, z_dim, 2 * z_dim, 4, 24, emission="gaussian", **guide).double()
    set_linear(dmm.trans.lin_gate_hidden_to_z, 0.0, -1e4)
    set_linear(dmm.trans.lin_z_to_loc, exact.transition_matrix, exact.transition_bias)
    set_linear(dmm.trans.lin_sig, 0.0, inverse_softplus(exact.transition_scale))
    eye, C = torch.eye(z_dim), exact.emission_matrix
    set_linear(dmm.emitter.lin_z_to_hidden, torch.cat([eye, -eye]), 0.0)
    set_linear(dmm.emitter.lin_hidden_to_hidden, torch.eye(2 * z_dim), 0.0)
    set_linear(dmm.emitter.lin_hidden_to_loc, torch.cat([C, -C], 1), exact.emission_bias)
    set_linear(dmm.emitter.lin_hidden_to_scale, 0.0, inverse_softplus(exact.emission_scale))
    with torch.no_grad():
        dmm.z_0.copy_(exact.z_0)
    return dmm


def train_guide(dmm: DMM, batch: Batch, steps: int = 150) -> None:
    """Fit q(z | x) to the batch with p(x, z) fixed."""
    for name, p in dmm.named_parameters():
        p.requires_grad_(name.startswith(GUIDE))
    dmm.eval()  # or Pyro warns of every parameter that is not trained
    optimizer = torch.optim.Adam([p for p in dmm.parameters() if p.requires_grad], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    loss_fn = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn.differentiable_loss(dmm.model, dmm.guide, *batch).backward()
        optimizer.step()
        schedule.step()


class Trained(NamedTuple):
    exact: LinearGaussianSet
    dmm: DMM
    batch: Batch


@pytest.fixture(scope="module", params=[False, True], ids=["full", "ragged"])
def trained(request: pytest.FixtureRequest) -> Trained:
    return train(request.param)


def train(ragged: bool, **guide: Any) -> Trained:
    torch.manual_seed(0)
    exact = linear_gaussian(N, T, Z, D, seed=3, ragged=ragged, dtype=torch.float64)
    dmm = linear_gaussian_dmm(exact, **guide)
    batch = exact.data.batch(torch.arange(N))
    train_guide(dmm, batch)
    return Trained(exact, dmm, batch)


def hmm_log_prob(exact: LinearGaussianSet) -> Tensor:
    """``[N]``: the exact log-likelihood by Pyro's Kalman filter, row by row."""
    # A known z_0 has no density, so the first transition ignores its start and begins where z_0 leads.
    start = dist.Normal(torch.zeros_like(exact.z_0), 1.0).to_event(1)
    A, b = exact.transition_matrix.T.repeat(T, 1, 1), exact.transition_bias.repeat(T, 1)
    b[0] += exact.z_0 @ A[0]
    A[0] = 0.0

    def likelihood(x: Tensor) -> Tensor:
        hmm = dist.GaussianHMM(
            start,
            A[: len(x)],
            dist.Normal(b[: len(x)], exact.transition_scale).to_event(1),
            exact.emission_matrix.T,
            dist.Normal(exact.emission_bias, exact.emission_scale).to_event(1),
            duration=len(x),
        )
        return hmm.log_prob(x)

    rows = zip(exact.data.sequences, exact.data.lengths.tolist(), strict=True)
    return torch.stack([likelihood(x[:n]) for x, n in rows])


class Estimate(NamedTuple):
    """``[N]`` each: log p_hat, its standard error (delta method) and the effective sample size."""

    log_prob: Tensor
    error: Tensor
    effective: Tensor


def estimate(dmm: DMM, batch: Batch) -> Estimate:
    """The importance-sampled log-likelihood, and its accuracy from the spread of the weights."""
    torch.manual_seed(1)
    log_prob = -importance_nll(dmm, batch, PARTICLES, PARTICLES)
    torch.manual_seed(1)
    with torch.no_grad():
        weights = log_weights(dmm, batch, PARTICLES).softmax(0) * PARTICLES
    error = weights.std(0) / math.sqrt(PARTICLES)
    return Estimate(log_prob, error, weights.sum(0).square() / weights.square().sum(0))


def test_the_two_exact_likelihoods_agree(trained: Trained) -> None:
    assert_close(trained.exact.log_prob(), hmm_log_prob(trained.exact), 1e-8)


def test_importance_sampling_finds_the_exact_likelihood(trained: Trained) -> None:
    got = estimate(trained.dmm, trained.batch)
    assert bool((got.effective > 0.2 * PARTICLES).all()), got.effective
    assert bool((got.error < 0.03).all()), got.error
    for exact in (trained.exact.log_prob(), hmm_log_prob(trained.exact)):
        assert bool(((got.log_prob - exact).abs() < 4 * got.error).all()), (got, exact)


@pytest.mark.parametrize(
    ("guide", "effective"),
    [
        ({"inference": "st-lr"}, 0.2),
        ({"inference": "st-lr", "rnn": "gru", "num_iafs": 1, "iaf_dim": 8}, 0.1),
        # A mean-field posterior lacks the correlations of the exact one.
        ({"inference": "mf-lr", "num_iafs": 2, "iaf_dim": 8}, 0.004),
    ],
    ids=["st-lr", "st-lr of gru, a flow", "mf-lr, two flows"],
)
def test_other_guides_find_the_exact_likelihood(guide: dict[str, Any], effective: float) -> None:
    trained = train(ragged=True, **guide)
    got = estimate(trained.dmm, trained.batch)
    assert bool((got.effective > effective * PARTICLES).all()), got.effective
    assert bool(((got.log_prob - trained.exact.log_prob()).abs() < 4 * got.error).all()), got


@pytest.mark.parametrize("layer", ["trans.lin_z_to_loc", "trans.lin_sig", "emitter.lin_hidden_to_loc", "z_0"])
def test_a_wrong_parameter_is_detected(trained: Trained, layer: str) -> None:
    """With each tensor of the model moved by 0.2, the estimate is off by many standard errors."""
    name = layer if layer == "z_0" else f"{layer}.{'bias' if 'sig' in layer else 'weight'}"
    parameter = trained.dmm.get_parameter(name)
    right = parameter.detach().clone()
    try:
        parameter.data.add_(0.2)
        wrong = estimate(trained.dmm, trained.batch)
    finally:
        parameter.data.copy_(right)
    distance = (wrong.log_prob - trained.exact.log_prob()).abs() / wrong.error
    assert bool((distance > 8).any()), distance


def test_the_bound_tightens_towards_the_exact_likelihood(trained: Trained) -> None:
    """With one particle the expectation is the ELBO, a lower bound; more particles close the gap."""
    exact = trained.exact.log_prob().sum()
    with torch.no_grad():
        weights = log_weights(trained.dmm, trained.batch, PARTICLES)
    gaps = [
        exact - sum(g.logsumexp(0) - math.log(k) for g in weights.split(k)).sum() * k / PARTICLES
        for k in (1, 5, 50)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[0] > 0.02
    assert gaps[2] < 0.1 * gaps[0]
