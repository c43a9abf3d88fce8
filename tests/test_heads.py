"""Emissions of counts and categories compared with ``torch.distributions``, gradients included."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, NegativeBinomial, OneHotCategorical, Poisson
from torch.nn.functional import one_hot, softplus

from dmm_fast import nn, ops
from dmm_fast.distributions import CategoricalEmission, NegativeBinomialEmission, PoissonEmission
from dmm_fast.ops import EmitterWeights, GaussianEmitterWeights
from tests.compare import backends_for, each_backend_and_dtype
from tests.device import DEVICE
from tests.helpers_model import LENGTHS, assert_close, stir, valid_steps

B, T, Z, D, E = len(LENGTHS), max(LENGTHS), 3, 5, 12
LENGTH = torch.tensor(LENGTHS)
NAN = float("nan")


class Kind(NamedTuple):
    """An emission, its emitter, and the corresponding distribution of torch."""

    emission: Any
    emitter: Any
    op: str

    def network(self) -> Any:
        torch.manual_seed(0)
        return stir(self.emitter(D, Z, E)).double()

    def exact(self, output: Any) -> Distribution:
        if self.emission is PoissonEmission:
            return Poisson(output)
        if self.emission is NegativeBinomialEmission:
            return NegativeBinomial(output[1], logits=output[0].log() - output[1].log())
        return OneHotCategorical(output)


KINDS = {
    "poisson": Kind(PoissonEmission, nn.PoissonEmitter, "poisson_emission_log_prob"),
    "negative_binomial": Kind(
        NegativeBinomialEmission, nn.NegativeBinomialEmitter, "negative_binomial_emission_log_prob"
    ),
    "categorical": Kind(CategoricalEmission, nn.CategoricalEmitter, "categorical_emission_log_prob"),
}
COUNTS = ("poisson", "negative_binomial")
each_kind = pytest.mark.parametrize("kind", KINDS)


def latents(*lead: int) -> Tensor:
    return torch.randn(*lead, B, T, Z, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def values(kind: str, network: Any) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return KINDS[kind].exact(network(latents())).sample()


def kept(mask: str) -> tuple[Tensor | None, Tensor]:
    """A mask of one kind, and the observed entries ``[B, T, D]``."""
    drawn = torch.rand(B, T, D, generator=torch.Generator().manual_seed(7)) > 0.4
    given = {"none": None, "steps": drawn[..., 0], "dims": drawn}[mask]
    valid = valid_steps()[..., None].expand(B, T, D)
    return given, valid if given is None else valid & (given if mask == "dims" else given[..., None])


def exact_log_prob(kind: str, network: Any, x: Tensor, z: Tensor, keep: Tensor) -> Tensor:
    """``[B]``: for counts a sum over entries, otherwise over the categories consistent with the mask."""
    law = KINDS[kind].exact(network(z))
    if kind != "categorical":
        return torch.where(keep, law.log_prob(torch.where(keep, x, 0.0)), 0.0).sum((-2, -1))
    categories = torch.eye(D, dtype=x.dtype)
    fits = ((categories == x[..., None, :]) | ~keep[..., None, :]).all(-1)
    of_steps = law.log_prob(categories[:, None, None]).movedim(0, -1)
    return torch.where(valid_steps(), of_steps.masked_fill(~fits, -math.inf).logsumexp(-1), 0.0).sum(-1)


# --- densities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["weights", "network"])
@pytest.mark.parametrize("mask", ["none", "steps", "dims"])
@each_kind
def test_log_prob_and_gradients_equal_those_of_torch(kind: str, mask: str, given: str) -> None:
    network = KINDS[kind].network()
    given_mask, keep = kept(mask)
    x, z = values(kind, network), latents().requires_grad_()
    leaves = [z, *network.parameters()]
    exact = exact_log_prob(kind, network, x, z, keep)
    wanted = torch.autograd.grad(exact.sum(), leaves)
    # Missing values and values past the end may be arbitrary.
    dirty = torch.where(keep, x, NAN)
    emitter = network.weights if given == "weights" else network
    got = KINDS[kind].emission(z, emitter, LENGTH, given_mask, D).log_prob(dirty)
    assert_close(got, exact, 1e-12)
    for mine, right in zip(torch.autograd.grad(got.sum(), leaves), wanted, strict=True):
        assert_close(mine, right, 1e-9)


@pytest.mark.parametrize(
    ("kind", "given"), [*((kind, "weights") for kind in KINDS), *((kind, "network") for kind in COUNTS)]
)
def test_latents_past_the_end_have_no_effect(kind: str, given: str) -> None:
    network = KINDS[kind].network()
    z = torch.where(valid_steps()[..., None], latents(), NAN).requires_grad_()
    emitter = network.weights if given == "weights" else lambda z_t: network(z_t)
    emission = KINDS[kind].emission(z, emitter, LENGTH, output_dim=D)
    (gradient,) = torch.autograd.grad(emission.log_prob(values(kind, network)).sum(), z)
    assert gradient[valid_steps()].isfinite().all()
    if given == "weights":
        assert gradient[~valid_steps()].count_nonzero() == 0


@each_kind
def test_a_value_of_particles_and_one_of_none(kind: str) -> None:
    network = KINDS[kind].network()
    x, z = values(kind, network), latents(2)
    for emitter in (network.weights, network):
        together = KINDS[kind].emission(z, emitter, LENGTH, output_dim=D).log_prob(x)
        apart = [KINDS[kind].emission(z_p, emitter, LENGTH, output_dim=D).log_prob(x) for z_p in z]
        assert_close(together, torch.stack(apart), 1e-13)
        expanded = KINDS[kind].emission(z[0], emitter, LENGTH, output_dim=D).expand((2, B))
        assert_close(expanded.log_prob(x.expand(2, B, T, D)), apart[0].expand(2, B), 1e-13)


@pytest.mark.parametrize("given", ["weights", "network"])
def test_partially_observed_categories_have_normalised_probabilities(given: str) -> None:
    network = KINDS["categorical"].network()
    emitter = network.weights if given == "weights" else network
    observed = torch.tensor([True, False, True, True, False])
    patterns = torch.cat([torch.eye(D, dtype=torch.float64)[observed], torch.zeros(1, D).double()])
    z, lengths = latents()[:1, :1].expand(len(patterns), 1, Z), torch.ones(len(patterns), dtype=torch.int64)
    mask = observed.expand(len(patterns), 1, D)
    log_prob = CategoricalEmission(z, emitter, lengths, mask, D).log_prob(patterns[:, None])
    assert_close(log_prob.exp().sum(), torch.ones(()).double(), 1e-13)


def test_a_step_of_which_nothing_is_observed_has_no_term() -> None:
    network = KINDS["categorical"].network()
    z = latents().requires_grad_()
    for mask in (torch.zeros(B, T), torch.zeros(B, T, D)):
        got = CategoricalEmission(z, network.weights, LENGTH, mask).log_prob(
            torch.full((B, T, D), NAN).double()
        )
        assert got.tolist() == [0.0] * B
        assert torch.autograd.grad(got.sum(), z)[0].count_nonzero() == 0


# --- draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["weights", "network"])
@each_kind
def test_draws_have_the_mean_and_the_variance(kind: str, given: str) -> None:
    network = KINDS[kind].network()
    z = latents()
    emission = KINDS[kind].emission(z, network.weights if given == "weights" else network, LENGTH, None, D)
    exact = KINDS[kind].exact(network(z))
    inside = valid_steps()
    assert_close(emission.mean[inside], exact.mean[inside], 1e-12)
    assert_close(emission.variance[inside], exact.variance[inside], 1e-12)
    assert_close(emission.stddev[inside], exact.variance[inside].sqrt(), 1e-12)
    torch.manual_seed(1)
    draws = emission.sample((4000,))
    assert draws.shape == (4000, B, T, D)
    assert draws.dtype == z.dtype
    assert bool((draws == draws.round()).all())
    assert bool((draws >= 0).all())
    for of_ours in (draws, emission.mean, emission.variance):
        assert of_ours[..., ~inside, :].count_nonzero() == 0
    if kind == "categorical":
        assert bool((draws[:, inside].sum(-1) == 1).all())
    n = len(draws)
    of_mean = (draws.mean(0) - emission.mean)[inside] / (emission.variance[inside] / n).sqrt()
    assert of_mean.abs().max() < 5
    squares = (draws - emission.mean).square()
    of_variance = (squares.mean(0) - emission.variance)[inside] / (squares.std(0)[inside] / math.sqrt(n))
    assert of_variance.abs().max() < 6


def test_draws_of_a_vanishing_total_count_are_finite() -> None:
    z = torch.zeros(2, 3, Z)
    for pre_count in (-1e4, -200.0, -90.0):

        def network(z_t: Tensor, count: float = pre_count) -> tuple[Tensor, Tensor]:
            return 3 + z_t, softplus(torch.full_like(z_t, count))

        draws = NegativeBinomialEmission(z, network, torch.tensor([3, 1]), output_dim=Z).sample((50,))
        assert draws.isfinite().all()


@each_kind
def test_latents_that_are_nan_are_not_drawn_from(kind: str) -> None:
    network = KINDS[kind].network()
    emission = KINDS[kind].emission(torch.full((B, T, Z), NAN).double(), network.weights, LENGTH)
    with pytest.raises(ValueError, match=r"^z: expected latents with a .* by the emitter, got NaN as a"):
        emission.sample()


# --- networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "output", "message"),
    [
        ("poisson", lambda z: z[..., :1] * 0 - 1, r"^emitter: expected numbers from 0, got -1.0"),
        ("poisson", lambda z: (z, z), r"^emitter: expected a floating"),
        ("poisson", lambda z: z[..., :2], r"^emitter: expected .*the network's output"),
        ("negative_binomial", lambda z: z.exp(), r"^emitter: expected a pair \(mean, total_count\), got"),
        ("negative_binomial", lambda z: (-z.exp(), z.exp()), r"^mean of emitter: expected numbers from 0"),
        ("negative_binomial", lambda z: (z.exp(), -z.exp()), r"^total_count of emitter: expected numbers"),
        ("categorical", lambda z: 2 + z.abs(), r"^emitter: expected probabilities between 0 and 1, got"),
        (
            "categorical",
            lambda z: z * 0 + 0.5,
            r"^emitter: expected probabilities that add up to 1, got a",
        ),
    ],
)
def test_an_invalid_network_output_is_refused(kind: str, output: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        KINDS[kind].emission(latents(), output, LENGTH, output_dim=Z)


@each_kind
def test_a_value_of_another_dtype_is_refused(kind: str) -> None:
    network = KINDS[kind].network()
    emission = KINDS[kind].emission(latents(), network, LENGTH, output_dim=D)
    with pytest.raises(ValueError, match=r"^value: expected"):
        emission.log_prob(torch.zeros(B, T, D))


def test_a_rate_of_zero_always_gives_zero() -> None:
    z = torch.zeros(B, T, D).requires_grad_()
    got = PoissonEmission(z, lambda z_t: z_t, LENGTH, output_dim=D).log_prob(torch.zeros(B, T, D))
    assert got.tolist() == [0.0] * B
    (slope,) = torch.autograd.grad(got.sum(), z)
    assert bool((slope[valid_steps()] == -1).all())


# --- extremes ---------------------------------------------------------------------------------------

FAR = [-200.0, -80.0, -20.0, -3.0, 0.5, 15.0, 200.0]
VALUES = [0.0, 1.0, 2.0, 7.0, 40.0, 1e4]


def each_alone(op: str, dtype: torch.dtype, x: Tensor, heads: list[Tensor]) -> tuple[Tensor, ...]:
    """Values of ``heads [N]`` for ``x [N]``, each by itself, and their gradients by x and the heads."""
    n = len(x)
    layers = [t for width in (1, 1) for t in (torch.zeros(1, width), torch.zeros(1))]
    biases = [head.to(DEVICE, dtype).requires_grad_() for head in heads]
    tensors = [t.to(DEVICE, dtype) for t in layers]
    tensors += [t for bias in biases for t in (torch.zeros(n, 1, device=DEVICE, dtype=dtype), bias)]
    weights = (EmitterWeights if len(heads) == 1 else GaussianEmitterWeights)(*tensors)
    value = x.to(DEVICE, dtype).expand(n, 1, n).clone().requires_grad_()
    mask = torch.eye(n, device=DEVICE)[:, None].bool()
    z = torch.zeros(n, 1, 1, device=DEVICE, dtype=dtype)
    lengths = torch.ones(n, dtype=torch.int64, device=DEVICE)
    got = getattr(ops, op)(value, z, weights, lengths, mask)
    by_x, *by_heads = torch.autograd.grad(got.sum(), [value, *biases])
    return tuple(t.detach().cpu().double() for t in (got, by_x[:, 0].diagonal(), *by_heads))


def assert_within(got: Tensor, exact: Tensor, scale: Tensor | float, dtype: torch.dtype) -> None:
    # torch's softplus is linear from 20 on, by definition of its threshold: off by exp(-20).
    allowed = 16 * torch.finfo(dtype).eps * (exact.abs() + scale) + 1e-8 * exact.abs().clamp_min(1.0)
    assert bool(((got - exact).abs() <= allowed).all()), (got - exact) / allowed


@each_backend_and_dtype("poisson_emission_log_prob")
def test_poisson_of_extremes(backend: str, dtype: torch.dtype) -> None:
    x, pre_rate = (
        t.flatten().double() for t in torch.meshgrid(torch.tensor(VALUES), torch.tensor(FAR), indexing="ij")
    )
    leaves = [t.clone().requires_grad_() for t in (x, pre_rate)]
    exact = Poisson(softplus(leaves[1])).log_prob(leaves[0])
    by_x, by_head = torch.autograd.grad(exact.sum(), leaves)
    with ops.use_backend(backend):
        got, got_by_x, got_by_head = each_alone("poisson_emission_log_prob", dtype, x, [pre_rate])
    scale = torch.lgamma(x + 1) + x * pre_rate.abs()
    assert_within(got, exact.detach(), scale, dtype)
    assert_within(got_by_x, by_x, 1 + torch.digamma(x + 1).abs() + pre_rate.abs(), dtype)
    assert_within(got_by_head, by_head, x + softplus(pre_rate), dtype)


@each_backend_and_dtype("negative_binomial_emission_log_prob")
def test_negative_binomial_of_extremes(backend: str, dtype: torch.dtype) -> None:
    grid = torch.meshgrid(torch.tensor(VALUES), torch.tensor(FAR), torch.tensor(FAR), indexing="ij")
    x, pre_mean, pre_count = (t.flatten().double() for t in grid)
    leaves = [t.clone().requires_grad_() for t in (x, pre_mean, pre_count)]
    m, r = softplus(leaves[1]), softplus(leaves[2])
    exact = NegativeBinomial(r, logits=m.log() - r.log()).log_prob(leaves[0])
    by_x, by_mean, by_count = torch.autograd.grad(exact.sum(), leaves)
    m, r = m.detach(), r.detach()
    with ops.use_backend(backend):
        got, got_by_x, *got_by_heads = each_alone(
            "negative_binomial_emission_log_prob", dtype, x, [pre_mean, pre_count]
        )
    logs = pre_mean.abs() + pre_count.abs()
    assert_within(got, exact.detach(), torch.lgamma(x + r + 1) + (x + r + 1) * (1 + logs), dtype)
    assert_within(got_by_heads[0], by_mean, x + m, dtype)
    assert_within(got_by_heads[1], by_count, x + m + r * (1 + logs), dtype)
    # The slope at x = 0 is -1 / r, which overflows float32 for some of them.
    held = (by_x.abs() < 1e37) | torch.tensor(dtype == torch.float64)
    assert not got_by_x.isnan().any()
    assert_within(got_by_x[held], by_x[held], (1 + logs + torch.digamma(x + 1).abs())[held], dtype)


@pytest.mark.parametrize(
    "backend", [b for b in backends_for(KINDS["negative_binomial"].op) if b != "reference"]
)
def test_a_large_total_count_is_a_poisson_in_single_precision(backend: str) -> None:
    x = torch.tensor([0.0, 1.0, 5.0, 30.0])
    pre_mean, pre_count = torch.tensor([0.5, 2.0, 4.0, 25.0]), torch.full((4,), 1e7)
    with ops.use_backend(backend):
        got, *_ = each_alone("negative_binomial_emission_log_prob", torch.float32, x, [pre_mean, pre_count])
    torch.testing.assert_close(
        got, Poisson(softplus(pre_mean.double())).log_prob(x.double()), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
@each_backend_and_dtype("categorical_emission_log_prob")
def test_categories_of_extremes(backend: str, dtype: torch.dtype, logit: float) -> None:
    """A logit far from the others: observed or missing, drawn or not."""
    logits = torch.tensor([logit, 0.0, 1.0], device=DEVICE, dtype=dtype)
    zeros = [torch.zeros(s, device=DEVICE, dtype=dtype) for s in ((1, 1), (1,), (1, 1), (1,), (3, 1))]
    x = one_hot(torch.arange(3, device=DEVICE), 3).to(dtype)[:, None].expand(3, 4, 3)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1]], device=DEVICE)
    others = math.log(1 + math.e)
    lse = max(logit, others) + math.log1p(math.exp(-abs(logit - others)))
    at = [logit - lse, -lse, 1 - lse]
    first_two = max(logit, 0.0) + math.log1p(math.exp(-abs(logit))) - lse
    for t, wanted in enumerate((at, at, [at[0], others - lse, others - lse], [first_two, first_two, at[2]])):
        bias = logits.clone().requires_grad_()
        with ops.use_backend(backend):
            got = ops.categorical_emission_log_prob(
                x[:, t : t + 1],
                torch.zeros(3, 1, 1, device=DEVICE, dtype=dtype),
                EmitterWeights(*zeros, bias),
                torch.ones(3, dtype=torch.int64, device=DEVICE),
                mask[t].expand(3, 1, 3),
            )
        torch.testing.assert_close(got.tolist(), wanted, rtol=1e-6, atol=1e-6)
        assert torch.autograd.grad(got.sum(), bias)[0].isfinite().all()
