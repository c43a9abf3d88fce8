"""Bands of forecasts have their nominal coverage if model and guide are exact."""

import pytest
import torch
from torch import Tensor

from dmm_fast import DMM
from dmm_fast.infer import forecast
from tests.helpers_model import set_linear

N, STEPS, DRAWS = 1000, 4, 300
A, SHIFT, BY_CONTROL, SCALE, Z_0 = 0.8, 0.3, 0.7, 0.5, -0.4
C = torch.tensor([1.2, -0.6], dtype=torch.float64)
OFFSET = torch.tensor([0.1, 0.5], dtype=torch.float64)
NOISE = torch.tensor([0.4, 0.7], dtype=torch.float64)
BANDS = (0.5, 0.8, 0.95)


def inverse_softplus(scale: Tensor) -> Tensor:
    return scale.expm1().log()


def exact_dmm(controlled: bool, noise: Tensor = NOISE) -> DMM:
    """p(z, x) is linear and Gaussian, and q(z_1) the exact posterior given x_1.

    ``z_t ~ N(A z_{t-1} + SHIFT + BY_CONTROL u_t, SCALE^2)``, ``x_t ~ N(C z_t + OFFSET, noise^2)``.
    """
    dmm = DMM(2, 1, 2, 1, 2, emission="gaussian", control_dim=int(controlled)).double()
    set_linear(dmm.trans.lin_gate_hidden_to_z, 0.0, -1e4)
    weight = torch.tensor([[A, BY_CONTROL][: 1 + controlled]])
    set_linear(dmm.trans.lin_z_to_loc, weight, SHIFT)
    set_linear(dmm.trans.lin_sig, 0.0, inverse_softplus(torch.tensor(SCALE)))
    # v = relu(v) - relu(-v): with hidden units v and -v a network is linear.
    both = torch.tensor([[1.0], [-1.0]])
    set_linear(dmm.emitter.lin_z_to_hidden, both, 0.0)
    set_linear(dmm.emitter.lin_hidden_to_hidden, torch.eye(2), 0.0)
    set_linear(dmm.emitter.lin_hidden_to_loc, C[:, None] * both.T, OFFSET)
    set_linear(dmm.emitter.lin_hidden_to_scale, 0.0, inverse_softplus(noise))
    # The posterior of z_1: precisions add up, and its mean is linear in x_1 and u_1.
    precision = SCALE**-2 + (C / NOISE).square().sum()
    gain = C / NOISE.square() / precision
    keep = SCALE**-2 / precision
    of_x = torch.cat([gain, keep * torch.tensor([BY_CONTROL])])[: 2 + controlled]
    constant = keep * (A * Z_0 + SHIFT) - gain @ OFFSET
    with torch.no_grad():
        dmm.z_0.fill_(Z_0)
        for parameter in dmm.rnn.parameters():
            parameter.zero_()
        dmm.rnn.weight_ih_l0.copy_(both * of_x)
        dmm.rnn.bias_ih_l0.copy_(both[:, 0] * constant)
    set_linear(dmm.combiner.lin_z_to_hidden, 0.0, 0.0)
    set_linear(dmm.combiner.lin_hidden_to_loc, 2.0 * both.T, 0.0)
    set_linear(dmm.combiner.lin_hidden_to_scale, 0.0, inverse_softplus(precision.rsqrt()))
    return dmm


def draw_data(controlled: bool) -> tuple[Tensor, Tensor]:
    """``x [N, 1 + STEPS, 2]`` and ``u [N, 1 + STEPS, 1]``, by the formulas above."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, z, x = normal(N, 1 + STEPS, 1), torch.full((N, 1), Z_0, dtype=torch.float64), []
    for t in range(1 + STEPS):
        z = A * z + SHIFT + controlled * BY_CONTROL * u[:, t] + SCALE * normal(N, 1)
        x.append(C * z + OFFSET + NOISE * normal(N, 2))
    return torch.stack(x, 1), u


def coverage(dmm: DMM, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """For each band, the fraction of future values within it, and its standard error."""
    ends = [tail for band in BANDS for tail in (0.5 - band / 2, 0.5 + band / 2)]
    given = (x[:, :1], None, None, None, 1.0, u[:, :1] if dmm.control_dim else None)
    future = u[:, 1:] if dmm.control_dim else None
    low, high = (
        forecast(dmm, given, STEPS, DRAWS, ends, controls=future, seed=1).unflatten(0, (-1, 2)).unbind(1)
    )
    inside = ((low <= x[:, 1:]) & (x[:, 1:] <= high)).double().mean((-2, -1))
    return inside.mean(-1), inside.std(-1) / N**0.5


@pytest.mark.parametrize("controlled", [False, True], ids=["", "controls"])
def test_bands_have_their_nominal_coverage(controlled: bool) -> None:
    x, u = draw_data(controlled)
    # Between two interpolated order statistics of S draws lies another draw with this probability.
    expected = torch.tensor(BANDS, dtype=torch.float64) * (DRAWS - 1) / (DRAWS + 1)
    got, error = coverage(exact_dmm(controlled), x, u)
    assert bool(((got - expected).abs() < 4 * error).all()), (got, expected, error)
    wrong, error = coverage(exact_dmm(controlled, 1.2 * NOISE), x, u)
    assert bool(((wrong - expected).abs() > 4 * error).all()), wrong
