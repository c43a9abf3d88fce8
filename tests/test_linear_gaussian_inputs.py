"""A linear Gaussian DMM with controls, covariates and past data, compared with exact inference."""

import math
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from dmm_fast import DMM
from dmm_fast.infer import latents
from tests.device import cpu_only
from tests.helpers_model import set_linear
from tests.test_linear_gaussian import PARTICLES, estimate, inverse_softplus, train_guide

pytestmark = cpu_only

Z, D, U, S, N, T = 2, 3, 2, 1, 3, 5
LENGTHS = torch.tensor([5, 2, 4])


class Exact:
    """``z_t ~ N(A z_{t-1} + F x_{t-1} + G u_t + H s, q^2)``, ``x_t ~ N(C z_t + E x_{t-1}, r^2)``, z_0 = 0."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.A, self.F = 0.8 * torch.eye(Z).double(), 0.2 * normal(Z, D)
        self.G, self.H = normal(Z, U), normal(Z, S)
        self.C, self.E = normal(D, Z), 0.2 * normal(D, D)
        self.q, self.r = torch.tensor([0.4, 0.5]).double(), torch.tensor([0.5, 0.6, 0.4]).double()
        self.u, self.s = 0.5 * normal(N, T, U), 0.5 * normal(N, S)
        z, x_prev, steps = torch.zeros(N, Z).double(), torch.zeros(N, D).double(), []
        for t in range(T):
            z = z @ self.A.T + self.drift(x_prev, t) + self.q * normal(N, Z)
            x_prev = z @ self.C.T + x_prev @ self.E.T + self.r * normal(N, D)
            steps.append(x_prev)
        valid = torch.arange(T) < LENGTHS[:, None]
        self.x = torch.stack(steps, 1) * valid[..., None]

    def drift(self, x_prev: Tensor, t: int) -> Tensor:
        return x_prev @ self.F.T + self.u[:, t] @ self.G.T + self.s @ self.H.T

    def log_prob(self) -> Tensor:
        """``[N]``: the likelihood by a Kalman filter, given the data before each step."""
        loc, cov, total = torch.zeros(N, Z).double(), torch.zeros(Z, Z).double(), torch.zeros(N).double()
        x_prev = torch.zeros(N, D).double()
        for t in range(T):
            loc = loc @ self.A.T + self.drift(x_prev, t)
            cov = self.A @ cov @ self.A.T + self.q.square().diag()
            seen = self.C @ cov @ self.C.T + self.r.square().diag()
            mean = loc @ self.C.T + x_prev @ self.E.T
            total = total + MultivariateNormal(mean, seen).log_prob(self.x[:, t]) * (t < LENGTHS)
            gain = cov @ self.C.T @ torch.linalg.inv(seen)
            loc, cov = loc + (self.x[:, t] - mean) @ gain.T, cov - gain @ self.C @ cov
            x_prev = self.x[:, t]
        return total

    def dmm(self) -> DMM:
        """The same model as a DMM, whose emitter is linear by pairs of hidden units, v and -v."""
        width = Z + D
        dmm = DMM(
            *(D, Z, 2 * width, 4, 24),
            emission="gaussian",
            augment="both",
            control_dim=U,
            static_dim=S,
            mask_input=True,
        ).double()
        set_linear(dmm.trans.lin_gate_hidden_to_z, 0.0, -1e4)
        set_linear(dmm.trans.lin_z_to_loc, torch.cat([self.A, self.F, self.G, self.H], 1), 0.0)
        set_linear(dmm.trans.lin_sig, 0.0, inverse_softplus(self.q))
        eye, out = torch.eye(width), torch.cat([self.C, self.E], 1)
        set_linear(dmm.emitter.lin_z_to_hidden, torch.cat([eye, -eye]), 0.0)
        set_linear(dmm.emitter.lin_hidden_to_hidden, torch.eye(2 * width), 0.0)
        set_linear(dmm.emitter.lin_hidden_to_loc, torch.cat([out, -out], 1), 0.0)
        set_linear(dmm.emitter.lin_hidden_to_scale, 0.0, inverse_softplus(self.r))
        with torch.no_grad():
            dmm.z_0.zero_()
        return dmm

    def batch(self) -> tuple[Any, ...]:
        return (self.x, None, None, LENGTHS, 1.0, self.u, self.s)


def test_importance_sampling_finds_the_exact_likelihood_with_inputs() -> None:
    torch.manual_seed(0)
    exact = Exact()
    dmm = exact.dmm()
    train_guide(dmm, exact.batch())
    got = estimate(dmm, exact.batch())
    assert bool((got.effective > 0.02 * PARTICLES).all()), got.effective
    assert bool(((got.log_prob - exact.log_prob()).abs() < 4 * got.error).all()), (got, exact.log_prob())
    # Other controls, or an omitted covariate, change the likelihood by many standard errors.
    for i in (5, 6):
        args = [*exact.batch()]
        args[i] = torch.zeros_like(args[i])
        wrong = estimate(dmm, tuple(args))
        assert bool(((wrong.log_prob - exact.log_prob()).abs() > 8 * wrong.error).any())


# --- a gap in a random walk -------------------------------------------------------------------------------

STEPS, GAP = 12, slice(4, 8)
Q, R = 0.2, 0.12


def smoother_scale() -> Tensor:
    """``[STEPS]``: the exact standard deviation of each z_t given a walk observed outside the gap."""
    prior = Q**2 * torch.minimum(torch.arange(1, STEPS + 1)[:, None], torch.arange(1, STEPS + 1)).double()
    seen = torch.ones(STEPS, dtype=torch.bool)
    seen[GAP] = False
    cross = prior[:, seen]
    noisy = prior[seen][:, seen] + R**2 * torch.eye(int(seen.sum())).double()
    return (prior - cross @ torch.linalg.solve(noisy, cross.T)).diagonal().sqrt()


def walk_dmm(mask_input: bool) -> DMM:
    dmm = DMM(1, 1, 2, 2, 16, emission="gaussian", mask_input=mask_input, rnn="tanh").double()
    set_linear(dmm.trans.lin_gate_hidden_to_z, 0.0, -1e4)
    set_linear(dmm.trans.lin_z_to_loc, 1.0, 0.0)
    set_linear(dmm.trans.lin_sig, 0.0, math.log(math.expm1(Q)))
    one = torch.tensor([[1.0], [-1.0]])
    set_linear(dmm.emitter.lin_z_to_hidden, one, 0.0)
    set_linear(dmm.emitter.lin_hidden_to_hidden, torch.eye(2), 0.0)
    set_linear(dmm.emitter.lin_hidden_to_loc, one.T, 0.0)
    set_linear(dmm.emitter.lin_hidden_to_scale, 0.0, math.log(math.expm1(R)))
    with torch.no_grad():
        dmm.z_0.zero_()
    return dmm


def spread_in_the_gap(mask_input: bool) -> Tensor:
    """``[STEPS]``: the guide's standard deviation of z_t after training on walks with gaps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    z = (Q * torch.randn(48, STEPS, 1, generator=generator, dtype=torch.float64)).cumsum(1)
    x = z + R * torch.randn(z.shape, generator=generator, dtype=torch.float64)
    mask = torch.ones(48, STEPS, dtype=torch.float64)
    mask[:, GAP] = 0
    batch = (x.masked_fill(mask[..., None] == 0, math.nan), None, mask, torch.full((48,), STEPS))
    dmm = walk_dmm(mask_input)
    for name, p in dmm.named_parameters():
        p.requires_grad_(name.startswith(("combiner.", "rnn.", "z_q_0", "h_0")))
    optimizer = torch.optim.Adam([p for p in dmm.parameters() if p.requires_grad], lr=0.04)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 500)
    loss_fn = Trace_ELBO()
    for _ in range(500):
        optimizer.zero_grad()
        loss_fn.differentiable_loss(dmm.model, dmm.guide, *batch).backward()
        optimizer.step()
        schedule.step()
    return latents(dmm, batch, 200, seed=2).z.std(0).mean(0).squeeze(-1)


def test_the_spread_in_a_gap_widens_like_that_of_the_exact_smoother() -> None:
    exact = smoother_scale()
    told, untold = spread_in_the_gap(mask_input=True) / exact, spread_in_the_gap(mask_input=False) / exact
    assert exact[GAP].min() > 2 * exact[2]
    assert bool(((told - 1).abs() < 0.3).all()), told
    # A guide that reads missing values as zero cannot locate the gap, and underestimates the spread there.
    assert untold[GAP].mean() < 0.85 * told[GAP].mean(), (told, untold)
