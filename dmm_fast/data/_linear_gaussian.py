"""A linear-Gaussian state space model: data with a known exact log-likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.data._sequences import SequenceSet

_LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True, eq=False)
class LinearGaussianSet:
    """Sequences and the exact parameters that they were drawn with.

    The model, for t = 1 .. lengths[n], from the known ``z_0``:

    ``z_t ~ N(A z_{t-1} + b, diag(q^2))`` and ``x_t ~ N(C z_t + d, diag(r^2))``.

    ``A`` is ``transition_matrix [Z, Z]``, ``b`` ``transition_bias [Z]``, ``q`` ``transition_scale
    [Z]``; ``C`` is ``emission_matrix [D, Z]``, ``d`` ``emission_bias [D]``, ``r`` ``emission_scale
    [D]``. All have the dtype of ``data.sequences``, ``[N, T, D]``.
    """

    data: SequenceSet
    z_0: Tensor
    transition_matrix: Tensor
    transition_bias: Tensor
    transition_scale: Tensor
    emission_matrix: Tensor
    emission_bias: Tensor
    emission_scale: Tensor

    def log_prob(self) -> Tensor:
        """``[N]`` float64: the exact log p(x_{1:lengths[n]}) of each sequence, in nats.

        It is computed by a Kalman filter in float64, with the covariance update in Joseph form, which stays
        symmetric and positive definite (Bucy and Joseph 1968). The covariances do not depend on the data, so
        they are shared by all rows.
        """
        x = self.data.sequences.double()
        A, b, q = (v.double() for v in self._transition())
        C, d, r = (v.double() for v in self._emission())
        Q, R = torch.diag(q.square()), torch.diag(r.square())
        eye = torch.eye(len(b), dtype=x.dtype, device=x.device)
        loc, cov = self.z_0.double().expand(len(x), -1), torch.zeros_like(A)
        total = x.new_zeros(len(x))
        for t in range(x.shape[1]):
            loc, cov = loc @ A.T + b, A @ cov @ A.T + Q
            residual = x[:, t] - (loc @ C.T + d)
            chol = torch.linalg.cholesky(C @ cov @ C.T + R)
            white = torch.linalg.solve_triangular(chol, residual.T, upper=False)
            log_det = 2 * chol.diagonal().log().sum()
            step = -0.5 * (white.square().sum(0) + log_det + x.shape[2] * math.log(2 * math.pi))
            total = total + torch.where(t < self.data.lengths, step, 0.0)
            gain = torch.cholesky_solve(C @ cov, chol).T
            loc, keep = loc + residual @ gain.T, eye - gain @ C
            cov = keep @ cov @ keep.T + gain @ R @ gain.T
        return total

    def _transition(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.transition_matrix, self.transition_bias, self.transition_scale

    def _emission(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.emission_matrix, self.emission_bias, self.emission_scale


def linear_gaussian(
    num_sequences: int = 100,
    T: int = 20,
    z_dim: int = 2,
    x_dim: int = 3,
    seed: int = 0,
    ragged: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LinearGaussianSet:
    """Draw a stable model and sequences from it, on the CPU and determined by ``seed``.

    The transition matrix is 0.9 times an orthogonal matrix, and scales lie in [0.3, 0.6]. Parameters are
    rounded to ``dtype`` before the sequences are drawn, so :meth:`LinearGaussianSet.log_prob` is exact for
    the returned parameters, up to the rounding of the data. With ``ragged``, lengths are uniform in
    ``1 .. T``, and the longest is ``T``. torch's global generator is not used.

    Raises:
        TypeError: a size or ``seed`` is not an int, or ``ragged`` not a bool.
        ValueError: a size is below 1 or ``dtype`` is neither float32 nor float64.
    """
    sizes = {"num_sequences": num_sequences, "T": T, "z_dim": z_dim, "x_dim": x_dim}
    for name, size in sizes.items():
        check.int_between(name, size, 1, _LARGEST_SIZE)
    seed = check.int_between("seed", seed, -check.LARGEST_INT, check.LARGEST_INT)
    check.kind("ragged", ragged, bool)
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        check.fail("dtype", "torch.float32 or torch.float64", check.describe(dtype))
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def scale(size: int) -> Tensor:
        return 0.3 + 0.3 * torch.rand(size, dtype=torch.float64, generator=generator)

    exact = (
        normal(z_dim),
        0.9 * torch.linalg.qr(normal(z_dim, z_dim)).Q,
        0.1 * normal(z_dim),
        scale(z_dim),
        normal(x_dim, z_dim) / math.sqrt(z_dim),
        0.1 * normal(x_dim),
        scale(x_dim),
    )
    rounded = tuple(v.to(dtype) for v in exact)
    z_0, A, b, q, C, d, r = (v.double() for v in rounded)
    z, steps = z_0.expand(num_sequences, z_dim), []
    for _ in range(T):
        z = z @ A.T + b + q * normal(num_sequences, z_dim)
        steps.append(z @ C.T + d + r * normal(num_sequences, x_dim))
    lengths = torch.full((num_sequences,), T)
    if ragged:
        lengths = torch.randint(1, T + 1, (num_sequences,), generator=generator)
        lengths[0] = T
    past_end = torch.arange(T) >= lengths[:, None]
    x = torch.stack(steps, 1).masked_fill(past_end[:, :, None], 0.0).to(dtype)
    return LinearGaussianSet(SequenceSet(x, lengths), *rounded)
