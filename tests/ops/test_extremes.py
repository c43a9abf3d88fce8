"""Scales that underflow, logits that saturate: results are finite wherever the mathematics is."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dmm_fast import ops, reference
from dmm_fast.ops import CombinerWeights, FlowWeights, GaussianEmitterWeights, TransitionWeights
from tests.cases import CASES, Case
from tests.compare import each_backend, each_backend_and_dtype
from tests.device import DEVICE
from tests.inputs import build

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
FAR = [-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 1e4]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
LENGTHS = torch.tensor([2, 1, 0], device=DEVICE)
STEPS = [2.0, 1.0, 0.0]
B, T, Z = 3, 2, 2


def exact_log_softplus(x: float) -> float:
    if x < -30:
        return x - math.exp(x) / 2
    return math.log(math.log1p(math.exp(x))) if x < 700 else math.log(x)


def exact_slope(x: float) -> float:
    """The derivative of :func:`exact_log_softplus`."""
    if x < -30:
        return 1 - math.exp(x) / 2
    return 1 / (1 + math.exp(-x)) / math.log1p(math.exp(x)) if x < 700 else 1 / x


def zero_weights(cls: type, spec: str, dtype: torch.dtype, **biases: float) -> Any:
    """Zero weights for sizes of 3 and Z, except for the named biases."""
    sizes = {"1": 1, "Z": Z}
    shapes = [[sizes.get(letter, 3) for letter in word] for word in spec.split()]
    fields = zip(cls._fields, shapes, strict=True)
    tensors = (torch.full(s, biases.get(name, 0.0), dtype=dtype, device=DEVICE) for name, s in fields)
    return cls(*(t.requires_grad_() for t in tensors))


def zero_transition(dtype: torch.dtype, pre_scale: float, loc: float = 0.0) -> TransitionWeights:
    # The gate of sigmoid(0) = 1/2 mixes the linear mean, twice loc, with a proposed mean of zero.
    biases = {"b_scale": pre_scale, "b_loc": 2 * loc}
    return zero_weights(TransitionWeights, "GZ G ZG Z RZ R ZR Z ZZ Z ZZ Z", dtype, **biases)


def zero_combiner(dtype: torch.dtype, pre_scale: float, loc: float = 0.0) -> CombinerWeights:
    biases = {"b_scale": pre_scale, "b_loc": loc}
    return zero_weights(CombinerWeights, "HZ H ZH Z ZH Z", dtype, **biases)


def leaf(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=dtype, device=DEVICE, requires_grad=True)


def assert_finite_gradients(output: Tensor, *inputs: Any) -> None:
    flat = [t for i in inputs for t in (i if isinstance(i, tuple) else (i,))]
    for gradient in torch.autograd.grad(output.sum(), flat, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def assert_each_row(got: Tensor, per_step: float) -> None:
    expected = torch.tensor([n * per_step for n in STEPS], dtype=got.dtype, device=DEVICE)
    torch.testing.assert_close(got.detach(), expected, rtol=2e-6, atol=1e-6)


# --- the log of softplus ------------------------------------------------------------------------------


@each_dtype
def test_log_softplus_and_its_slope_are_exact(dtype: torch.dtype) -> None:
    cut = math.log(torch.finfo(dtype).eps)
    places = torch.cat([torch.linspace(-60, 60, 2401), torch.linspace(-1e4, 1e4, 201)])
    edges = torch.tensor([cut, math.nextafter(cut, -99), math.nextafter(cut, 99)])
    x = torch.cat([places, edges]).to(dtype).requires_grad_()
    value = reference.log_softplus(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    given = x.detach().double().tolist()
    eps = torch.finfo(dtype).eps
    # torch's softplus is linear above its threshold of 20, with an error of exp(-20).
    for got, exact in ((value, exact_log_softplus), (slope, exact_slope)):
        expected = torch.tensor([exact(v) for v in given], dtype=torch.float64)
        off = (got.detach().double() - expected).abs()
        allowed = 8 * eps * expected.abs().clamp_min(1.0)
        allowed[x.detach() > 20] += 3e-9
        assert (off <= allowed).all(), x[off > allowed]


@each_dtype
def test_log_softplus_rises_and_its_slope_falls(dtype: torch.dtype) -> None:
    x = torch.linspace(-50, 50, 1001, dtype=dtype, requires_grad=True)
    value = reference.log_softplus(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert (value.diff() > 0).all()
    assert (slope.diff() <= torch.finfo(dtype).eps).all()
    assert ((slope > 0) & (slope <= 1)).all()


# --- densities from the pre-activation of the scale ---------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 3.0])
@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("drawn_log_prob")
def test_drawn_log_prob(backend: str, dtype: torch.dtype, pre_scale: float, eps: float) -> None:
    noise, pre = leaf(eps, dtype, B, T, Z), leaf(pre_scale, dtype, B, T, Z)
    with ops.use_backend(backend):
        got = ops.drawn_log_prob(noise, pre, LENGTHS)
    per_step = -Z * (0.5 * eps**2 + exact_log_softplus(pre_scale) + HALF_LOG_2PI)
    assert_each_row(got, per_step)
    (slope,) = torch.autograd.grad(got.sum(), pre)
    torch.testing.assert_close(slope[0, 0, 0].item(), -exact_slope(pre_scale), rtol=1e-6, atol=0)
    assert slope[2].count_nonzero() == 0


@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("transition_log_prob")
def test_transition_log_prob_at_its_mean(backend: str, dtype: torch.dtype, pre_scale: float) -> None:
    z, z_0, weights = leaf(0, dtype, B, T, Z), leaf(0, dtype, Z), zero_transition(dtype, pre_scale)
    with ops.use_backend(backend):
        got = ops.transition_log_prob(z, z_0, weights, LENGTHS)
    assert_each_row(got, -Z * (exact_log_softplus(pre_scale) + HALF_LOG_2PI))
    assert_finite_gradients(got, z, z_0, weights)


@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("combiner_log_prob")
def test_combiner_log_prob_at_its_mean(backend: str, dtype: torch.dtype, pre_scale: float) -> None:
    z, h, z_q_0 = leaf(0, dtype, B, T, Z), leaf(1, dtype, B, T, 3), leaf(0, dtype, Z)
    weights = zero_combiner(dtype, pre_scale)
    with ops.use_backend(backend):
        got = ops.combiner_log_prob(z, h, z_q_0, weights, LENGTHS)
    assert_each_row(got, -Z * (exact_log_softplus(pre_scale) + HALF_LOG_2PI))
    assert_finite_gradients(got, z, h, z_q_0, weights)


@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("transition_kl")
def test_transition_kl_of_a_posterior_at_its_priors_mean(
    backend: str, dtype: torch.dtype, pre_scale: float
) -> None:
    z, loc, z_0 = leaf(0.5, dtype, B, T, Z), leaf(0, dtype, B, T, Z), leaf(0, dtype, Z)
    pre = leaf(pre_scale, dtype, B, T, Z)
    weights = zero_transition(dtype, 1.0)
    with ops.use_backend(backend):
        got = ops.transition_kl(z, loc, pre, z_0, weights, LENGTHS)
    log_ratio = exact_log_softplus(pre_scale) - exact_log_softplus(1.0)
    assert_each_row(got, Z * (0.5 * math.expm1(2 * log_ratio) - log_ratio))
    assert_finite_gradients(got, z, loc, pre, z_0, weights)


@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("transition_kl")
def test_transition_kl_of_the_prior_itself_is_zero(
    backend: str, dtype: torch.dtype, pre_scale: float
) -> None:
    z, loc, z_0 = leaf(0.5, dtype, B, T, Z), leaf(0, dtype, B, T, Z), leaf(0, dtype, Z)
    pre = leaf(pre_scale, dtype, B, T, Z)
    weights = zero_transition(dtype, pre_scale)
    with ops.use_backend(backend):
        got = ops.transition_kl(z, loc, pre, z_0, weights, LENGTHS)
    assert_each_row(got, 0.0)
    assert_finite_gradients(got, z, loc, pre, z_0, weights)


@each_backend_and_dtype("transition_kl")
def test_transition_kl_over_a_vanished_prior_is_infinite_and_no_nan(backend: str, dtype: torch.dtype) -> None:
    z, loc, pre = (leaf(0, dtype, B, T, Z) for _ in range(3))
    with ops.use_backend(backend):
        weights = zero_transition(dtype, -1e4)
        got = ops.transition_kl(z, loc, pre, leaf(0, dtype, Z), weights, LENGTHS)
    assert got.tolist() == [math.inf, math.inf, 0.0]


@pytest.mark.parametrize("logit", [-1e4, -200.0, 0.0, 200.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
@each_backend_and_dtype("bernoulli_log_prob")
def test_bernoulli_log_prob(backend: str, dtype: torch.dtype, x: float, logit: float) -> None:
    value, logits = leaf(x, dtype, B, T, Z), leaf(logit, dtype, B, T, Z)
    with ops.use_backend(backend):
        got = ops.bernoulli_log_prob(value, logits, LENGTHS)
    side = logit if x == 0 else -logit
    assert_each_row(got, -Z * (max(side, 0.0) + math.log1p(math.exp(-abs(side)))))
    (slope,) = torch.autograd.grad(got.sum(), logits)
    expected = x - (1.0 if logit > 0 else 0.0 if logit < 0 else 0.5)
    torch.testing.assert_close(slope[0, 0, 0].item(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@each_backend_and_dtype("emission_log_prob")
def test_emission_log_prob(backend: str, dtype: torch.dtype, logit: float) -> None:
    case = Case("certain", B=B, T=T, D=Z, Z=Z, E=3)
    inputs = build("emission_log_prob", case, dtype)
    w = inputs["weights"]
    w = w._replace(w_out=torch.zeros_like(w.w_out), b_out=torch.full_like(w.b_out, logit))
    w = type(w)(*(t.requires_grad_() for t in w))
    for x in (0.0, 1.0):
        with ops.use_backend(backend):
            value = torch.full_like(inputs["x"], x)
            got = ops.emission_log_prob(value, inputs["z"], w, LENGTHS)
        assert_each_row(got, -Z * max(logit if x == 0 else -logit, 0.0))
        assert_finite_gradients(got, w)


# --- invalid or masked entries, under a scale that vanishes -------------------------------------------


@pytest.mark.parametrize("pre_scale", [-1e4, -200.0, -60.0])
@each_backend_and_dtype("transition_log_prob")
def test_padding_of_transition_log_prob_has_no_effect(
    backend: str, dtype: torch.dtype, pre_scale: float
) -> None:
    # Valid steps are at their mean of 1; values at other steps are far from theirs.
    z, z_0 = leaf(1, dtype, B, T, Z), leaf(1, dtype, Z)
    weights = zero_transition(dtype, pre_scale, loc=1.0)
    with ops.use_backend(backend):
        got = ops.transition_log_prob(z, z_0, weights, LENGTHS)
    assert_each_row(got, -Z * (pre_scale + HALF_LOG_2PI))
    assert_finite_gradients(got, z, z_0, weights)


@pytest.mark.parametrize("pre_scale", [-1e4, -200.0, -60.0])
@each_backend_and_dtype("transition_kl")
def test_padding_of_transition_kl_has_no_effect(backend: str, dtype: torch.dtype, pre_scale: float) -> None:
    z, loc, z_0 = leaf(1, dtype, B, T, Z), leaf(1, dtype, B, T, Z), leaf(1, dtype, Z)
    pre, weights = leaf(pre_scale, dtype, B, T, Z), zero_transition(dtype, pre_scale, loc=1.0)
    with ops.use_backend(backend):
        got = ops.transition_kl(z, loc, pre, z_0, weights, LENGTHS)
    assert_each_row(got, 0.0)
    assert_finite_gradients(got, z, loc, pre, z_0, weights)


@pytest.mark.parametrize("pre_scale", [-1e4, -200.0, -60.0])
@each_backend_and_dtype("combiner_log_prob")
def test_padding_of_combiner_log_prob_has_no_effect(
    backend: str, dtype: torch.dtype, pre_scale: float
) -> None:
    z, h, z_q_0 = leaf(1, dtype, B, T, Z), leaf(1, dtype, B, T, 3), leaf(1, dtype, Z)
    weights = zero_combiner(dtype, pre_scale, loc=1.0)
    with ops.use_backend(backend):
        got = ops.combiner_log_prob(z, h, z_q_0, weights, LENGTHS)
    assert_each_row(got, -Z * (pre_scale + HALF_LOG_2PI))
    assert_finite_gradients(got, z, h, z_q_0, weights)


@pytest.mark.parametrize("pre_scale", [-1e4, -200.0, -60.0])
@each_backend_and_dtype("gaussian_emission_log_prob")
def test_unobserved_values_of_gaussian_emission_have_no_effect(
    backend: str, dtype: torch.dtype, pre_scale: float
) -> None:
    x, z = leaf(1, dtype, B, T, 3), leaf(1, dtype, B, T, Z)
    spec = "EZ E EE E DE D DE D"
    weights = zero_weights(GaussianEmitterWeights, spec, dtype, b_loc=1.0, b_scale=pre_scale)
    mask = torch.tensor([True, False, True], device=DEVICE).expand(B, T, 3)
    with ops.use_backend(backend):
        got = ops.gaussian_emission_log_prob(x, z, weights, LENGTHS, mask)
    assert_each_row(got, -2 * (pre_scale + HALF_LOG_2PI))
    assert_finite_gradients(got, x, z, weights)


# --- no NaN where eager Normal is finite --------------------------------------------------------------


def _grid(dtype: torch.dtype, scales: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    residuals = [0.0, 1e-30, 1e-8, 1.0, 1e4, 1e30]
    pairs = [(r, s) for r in residuals for s in scales]
    residual, scale = torch.tensor(pairs, dtype=dtype, device=DEVICE).unbind(1)
    return residual, torch.zeros_like(residual), scale


def _assert_no_new_nan(ours: tuple[Tensor, ...], eager: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(ours, eager, strict=True):
        assert not (mine.isnan().flatten() & ~theirs.isnan().flatten()).any()


@each_backend_and_dtype("gaussian_emission_log_prob")
def test_gaussian_emission_has_no_nan_that_eager_normal_lacks(backend: str, dtype: torch.dtype) -> None:
    value, loc, pre_scale = _grid(dtype, [*FAR, -103.0, -87.0, -45.0])
    leaves = [t.clone().requires_grad_() for t in (value, loc, pre_scale)]
    scale = torch.nn.functional.softplus(leaves[2])
    terms = Normal(leaves[1], scale, validate_args=False).log_prob(leaves[0])
    eager = torch.autograd.grad(terms.sum(), leaves)
    D = len(value)
    inputs = build("gaussian_emission_log_prob", Case("grid", B=1, T=1, D=D, E=3), dtype)
    inputs["x"] = value.reshape(1, 1, D).clone().requires_grad_()
    inputs["weights"] = inputs["weights"]._replace(
        w_loc=value.new_zeros(D, 3),
        w_scale=value.new_zeros(D, 3),
        b_loc=loc.clone().requires_grad_(),
        b_scale=pre_scale.clone().requires_grad_(),
    )
    with ops.use_backend(backend):
        got = ops.gaussian_emission_log_prob(**inputs)
    wanted = [inputs["x"], inputs["weights"].b_loc, inputs["weights"].b_scale]
    ours = torch.autograd.grad(got.sum(), wanted)
    _assert_no_new_nan(ours, eager)
    assert not any(g.isnan().any() for g in ours)


@each_backend_and_dtype("normal_log_prob")
def test_normal_log_prob_has_no_nan_that_eager_normal_lacks(backend: str, dtype: torch.dtype) -> None:
    grid = _grid(dtype, [1e-37, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e30])
    leaves = [t.clone().requires_grad_() for t in grid]
    terms = Normal(leaves[1], leaves[2]).log_prob(leaves[0])
    eager = torch.autograd.grad(terms.sum(), leaves)
    # One row per number, as values are compared as well.
    ours_in = [t.reshape(-1, 1, 1).clone().requires_grad_() for t in grid]
    lengths = torch.ones(len(terms), dtype=torch.int64, device=DEVICE)
    with ops.use_backend(backend):
        got = ops.normal_log_prob(*ours_in, lengths)
    _assert_no_new_nan((got, *torch.autograd.grad(got.sum(), ours_in)), (terms, *eager))
    certain = grid[0] == 0
    expected = -grid[2].double().log() - HALF_LOG_2PI
    torch.testing.assert_close(got[certain].double(), expected[certain], rtol=1e-6, atol=0)


# --- scans --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("combiner_scan")
def test_combiner_scan(backend: str, dtype: torch.dtype, pre_scale: float) -> None:
    h, eps, z_q_0 = leaf(1, dtype, B, T, 3), leaf(2, dtype, B, T, Z), leaf(0, dtype, Z)
    weights = zero_combiner(dtype, pre_scale)
    with ops.use_backend(backend):
        z, loc, pre = ops.combiner_scan(h, eps, z_q_0, weights, LENGTHS)
    scale = math.exp(exact_log_softplus(pre_scale))
    torch.testing.assert_close(z[0, 1, 0].item(), 2 * scale, rtol=1e-6, atol=1e-30)
    assert (loc == 0).all()
    assert (pre[0] == pre_scale).all()
    assert_finite_gradients(z + loc + pre, h, eps, z_q_0, weights)


@pytest.mark.parametrize("log_scale", [-1e4, -5.0, 3.0, 1e4])
@pytest.mark.parametrize("pre_scale", FAR)
@each_backend_and_dtype("flow_scan")
def test_flow_scan(backend: str, dtype: torch.dtype, pre_scale: float, log_scale: float) -> None:
    h, eps, z_q_0 = leaf(1, dtype, B, T, 3), leaf(2, dtype, B, T, Z), leaf(0, dtype, Z)
    weights = zero_combiner(dtype, pre_scale)
    flows = zero_weights(FlowWeights, "13Z 13 1Z3 1Z 1Z3 1Z", dtype, b_log_scale=log_scale)
    with ops.use_backend(backend):
        z, loc, pre, log_det = ops.flow_scan(h, eps, z_q_0, weights, flows, LENGTHS)
    clamped = min(max(log_scale, -5.0), 3.0)
    scale = math.exp(exact_log_softplus(pre_scale) + clamped)
    torch.testing.assert_close(z[0, 1, 0].item(), 2 * scale, rtol=2e-6, atol=1e-30)
    assert (loc == 0).all()
    assert_each_row(log_det, Z * clamped)
    outputs = torch.cat([(z + loc + pre).flatten(), log_det])
    assert_finite_gradients(outputs, h, eps, z_q_0, weights, flows)


@pytest.mark.parametrize("size", [-1e4, 1e4])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@each_backend("rnn_scan")
def test_rnn_scan(backend: str, nonlinearity: str, size: float) -> None:
    inputs = build("rnn_scan", CASES["small"])
    inputs["x_proj"] = torch.full_like(inputs["x_proj"], size, requires_grad=True)
    inputs["w_hh"] = torch.zeros_like(inputs["w_hh"]).requires_grad_()
    inputs["nonlinearity"] = nonlinearity
    with ops.use_backend(backend):
        h = ops.rnn_scan(**inputs)
    saturated = math.copysign(1.0, size)
    assert (h == (saturated if nonlinearity == "tanh" else max(size, 0.0))).all()
    assert_finite_gradients(h, inputs["x_proj"], inputs["w_hh"])


def test_zero_weights_give_the_means_that_the_tests_rely_on() -> None:
    loc, _ = ops.gated_transition(torch.ones(Z, device=DEVICE), zero_transition(torch.float32, 0.0, loc=1.0))
    assert (loc == 1).all()
    ones = torch.ones(Z, device=DEVICE), torch.ones(3, device=DEVICE)
    loc, _ = ops.combiner(*ones, zero_combiner(torch.float32, 0.0, loc=1.0))
    assert (loc == 1).all()
