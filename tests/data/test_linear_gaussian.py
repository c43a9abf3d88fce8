"""The Kalman filter, compared with Pyro's GaussianHMM and with the joint Gaussian."""

import dataclasses

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from dmm_fast.data import LinearGaussianSet, SequenceSet, linear_gaussian


def as_pyro(data: LinearGaussianSet, T: int) -> dist.GaussianHMM:
    """The same model: Pyro's state starts one step before x_1, matrices act from the right.

    The known z_0 is not Gaussian, so the first transition ignores its start and draws z_1.
    """
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    double = {name: v.double() for name, v in fields.items() if isinstance(v, Tensor)}
    A, b, Z = double["transition_matrix"], double["transition_bias"], len(data.z_0)
    matrices = A.T.expand(T, Z, Z).clone()
    matrices[0] = 0
    biases = b.expand(T, Z).clone()
    biases[0] += A @ double["z_0"]
    return dist.GaussianHMM(
        dist.MultivariateNormal(torch.zeros_like(b), torch.eye(Z).double()),
        matrices,
        dist.MultivariateNormal(biases, double["transition_scale"].square().diag()),
        double["emission_matrix"].T,
        dist.MultivariateNormal(double["emission_bias"], double["emission_scale"].square().diag()),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("z_dim", "x_dim"), [(1, 1), (2, 3), (4, 2)])
def test_log_prob_is_pyros(z_dim: int, x_dim: int, dtype: torch.dtype) -> None:
    data = linear_gaussian(6, 9, z_dim, x_dim, seed=1, ragged=True, dtype=dtype)
    rows = zip(data.data.sequences.double(), data.data.lengths.tolist(), strict=True)
    expected = torch.stack([as_pyro(data, n).log_prob(x[:n]) for x, n in rows])
    got = data.log_prob()
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_log_prob_is_the_joint_gaussians() -> None:
    T = 4
    data = linear_gaussian(5, T, 2, 3, seed=2, dtype=torch.float64)
    A, C, D = data.transition_matrix, data.emission_matrix, 3
    loc, cov = data.z_0, torch.zeros(2, 2, dtype=torch.float64)
    locs, covs = [], []
    for _ in range(T):
        loc = A @ loc + data.transition_bias
        cov = A @ cov @ A.T + data.transition_scale.square().diag()
        locs.append(C @ loc + data.emission_bias)
        covs.append(cov)
    joint = torch.zeros(T * D, T * D, dtype=torch.float64)
    for s in range(T):
        for t in range(T):
            lag = torch.linalg.matrix_power(A, abs(s - t))
            cross = lag @ covs[t] if s >= t else covs[s] @ lag.T
            joint[s * D : (s + 1) * D, t * D : (t + 1) * D] = C @ cross @ C.T
    joint += data.emission_scale.square().repeat(T).diag()
    normal = torch.distributions.MultivariateNormal(torch.cat(locs), joint)
    expected = normal.log_prob(data.data.sequences.reshape(5, -1))
    torch.testing.assert_close(data.log_prob(), expected, rtol=1e-10, atol=1e-10)


def test_values_past_the_end_have_no_effect() -> None:
    data = linear_gaussian(4, 6, ragged=True, seed=4)
    short = int(data.data.lengths.argmin())
    n = int(data.data.lengths[short])
    assert n < 6
    cut = SequenceSet(data.data.sequences[short : short + 1, :n], torch.tensor([n]))
    alone = dataclasses.replace(data, data=cut)
    torch.testing.assert_close(alone.log_prob()[0], data.log_prob()[short])


def test_samples_follow_the_model() -> None:
    """Mean and scale of each x_t over many sequences are the model's, within five errors."""
    N = 20_000
    data = linear_gaussian(N, 3, 2, 2, seed=5, dtype=torch.float64)
    A, C = data.transition_matrix, data.emission_matrix
    loc, cov = data.z_0, torch.zeros(2, 2, dtype=torch.float64)
    for t in range(3):
        loc = A @ loc + data.transition_bias
        cov = A @ cov @ A.T + data.transition_scale.square().diag()
        expected = (C @ cov @ C.T + data.emission_scale.square().diag()).diag().sqrt()
        x = data.data.sequences[:, t]
        error = (x.mean(0) - C @ loc - data.emission_bias).abs() / (expected / N**0.5)
        assert (error < 5).all()
        assert ((x.std(0) / expected - 1).abs() < 5 / (2 * N) ** 0.5).all()


def test_seed_determines_the_data_and_the_global_generator_is_unchanged() -> None:
    state = torch.get_rng_state()
    first = linear_gaussian(3, 4, seed=1, ragged=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (linear_gaussian(3, 4, seed=s, ragged=True) for s in (1, 2))
    assert torch.equal(first.data.sequences, again.data.sequences)
    assert not torch.equal(first.data.sequences, other.data.sequences)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_stability(dtype: torch.dtype) -> None:
    data = linear_gaussian(20, 7, 4, 5, ragged=True, dtype=dtype)
    assert data.data.sequences.shape == (20, 7, 5)
    assert len(data.data.lengths.unique()) > 3
    assert data.data.lengths.max() == 7
    shapes = {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name != "data"}
    assert {v.dtype for v in (data.data.sequences, *shapes.values())} == {dtype}
    assert {name: tuple(v.shape) for name, v in shapes.items()} == {
        "z_0": (4,),
        "transition_matrix": (4, 4),
        "transition_bias": (4,),
        "transition_scale": (4,),
        "emission_matrix": (5, 4),
        "emission_bias": (5,),
        "emission_scale": (5,),
    }
    assert torch.linalg.eigvals(data.transition_matrix).abs().max() < 0.95
    assert all(linear_gaussian(2, 50, seed=s, ragged=True).data.lengths.max() == 50 for s in (1, 2))
    assert (linear_gaussian(3, 7).data.lengths == 7).all()


@pytest.mark.parametrize("name", ["num_sequences", "T", "z_dim", "x_dim"])
def test_refuses_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a positive int, got 0"):
        linear_gaussian(**{name: 0})


def test_refuses_dtype() -> None:
    with pytest.raises(ValueError, match=r"dtype: expected .* got dtype torch.float16"):
        linear_gaussian(dtype=torch.float16)
