"""Common behaviour of the sequence-level distributions, their noise, and the emissions."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from dmm_fast import DMM
from dmm_fast.distributions import (
    BernoulliEmission,
    FlowedNormal,
    GaussianEmission,
    MarkovPosterior,
    MarkovPrior,
    MeanFieldPosterior,
)
from dmm_fast.distributions._sequence import standard_noise
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    assert_close,
    assert_means_agree,
    gradients,
    make_batch,
    missing_mask,
    posterior_of,
    small_dmm,
    valid_steps,
)

B, T, Z, D = len(LENGTHS), max(LENGTHS), 3, 5
NAN = float("nan")
LENGTH = torch.tensor(LENGTHS)


def distribution(kind: str, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """A distribution of each kind, with ragged lengths."""
    emission = "gaussian" if kind == "gaussian" else "bernoulli"
    inference = "mf-r" if kind.startswith("mean field") else "st-r"
    flows = FLOWS if kind.endswith("flows") else {}
    dmm = small_dmm(dtype=dtype, emission=emission, inference=inference, **flows)
    lengths = torch.tensor(LENGTHS)
    if kind in GUIDES:
        return posterior_of(dmm, dtype)
    if kind == "prior":
        return dmm.prior(lengths, T)
    z = torch.randn(B, T, Z, dtype=dtype, generator=torch.Generator().manual_seed(4))
    return dmm.emission(z, lengths, **kwargs)


GUIDES = {
    "posterior": MarkovPosterior,
    "flows": MarkovPosterior,
    "mean field": MeanFieldPosterior,
    "mean field with flows": MeanFieldPosterior,
}
CLASSES = {
    "prior": MarkovPrior,
    **GUIDES,
    "bernoulli": BernoulliEmission,
    "gaussian": GaussianEmission,
}
KINDS = list(CLASSES)
EVENT = {kind: (T, D if kind in ("bernoulli", "gaussian") else Z) for kind in KINDS}


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_draws_and_densities(kind: str) -> None:
    q = distribution(kind)
    assert isinstance(q, CLASSES[kind])
    assert q.has_rsample == (kind != "bernoulli")
    assert (q.batch_shape, q.event_shape) == ((B,), EVENT[kind])
    for sample_shape in ((), (2,), (2, 3)):
        value = q.sample(torch.Size(sample_shape))
        assert value.shape == (*sample_shape, B, *EVENT[kind])
        assert q.log_prob(value).shape == (*sample_shape, B)
        assert not value.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(7,), (2, 7), (1, 7)])
def test_expand_adds_particles_on_the_left(kind: str, lead: tuple[int, ...]) -> None:
    q = distribution(kind)
    wide = q.expand((*lead, B))
    assert type(wide) is type(q)
    assert (wide.batch_shape, wide.event_shape) == ((*lead, B), EVENT[kind])
    assert q.batch_shape == (B,)
    value = wide.sample()
    assert value.shape == (*lead, B, *EVENT[kind])
    assert wide.log_prob(value).shape == (*lead, B)
    assert wide.sample(torch.Size((4,))).shape == (4, *lead, B, *EVENT[kind])
    particles = value.flatten(0, len(lead) - 1)
    assert not torch.equal(particles[0], particles[-1]), "every particle draws for itself"
    # A value without particles has the same density for each particle.
    one = particles[0].clone()
    torch.testing.assert_close(wide.log_prob(one), q.log_prob(one).expand(*lead, B))
    torch.testing.assert_close(wide.log_prob(one)[(0,) * len(lead)], q.log_prob(one))


@pytest.mark.parametrize("kind", KINDS)
def test_expand_to_a_shape_that_does_not_fit_is_refused(kind: str) -> None:
    q = distribution(kind)
    for shape in ((B + 3,), (2, 1), (B, 2), ()):
        with pytest.raises(ValueError, match=r"^batch_shape: expected one that \(4,\) expands to"):
            q.expand(shape)
    assert q.batch_shape == (B,)


def test_one_row_does_not_expand_into_more_rows() -> None:
    """Lengths, inputs or latents have one row; particles are further left."""
    dmm, lengths = small_dmm(), torch.tensor([3])
    for q in (
        dmm.prior(lengths, 3),
        dmm.posterior(torch.zeros(1, 3, 7), lengths),
        dmm.emission(torch.zeros(1, 3, Z), lengths),
    ):
        assert q.expand((5, 1)).sample().shape[:3] == (5, 1, 3)
        with pytest.raises(ValueError, match=r"^batch_shape: expected one that \(1,\) expands to"):
            q.expand((5,))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_zero_past_the_end(kind: str) -> None:
    q = distribution(kind)
    for value in (q.sample((20,)), q.expand((20, B)).sample()):
        assert bool((value[:, ~valid_steps()] == 0).all())
        inside = value[:, valid_steps()]
        assert bool(((inside != 0).any(0) if kind == "bernoulli" else inside != 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_shape_is_refused(kind: str) -> None:
    q = distribution(kind)
    steps, width = EVENT[kind]
    for shape in (
        (B, steps, width + 1),
        (B, steps - 1, width),
        (B + 1, steps, width),
        (1, steps, width),
        (steps, width),
    ):
        with pytest.raises(ValueError, match=r"^value: expected shape \(\.\.\., 4, 6, \d\)"):
            q.log_prob(torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_values_past_the_end_have_no_effect(kind: str) -> None:
    q = distribution(kind)
    value = q.sample().clone()
    dirty = value.clone()
    dirty[~valid_steps()] = NAN
    clean_log_prob = q.log_prob(value)
    assert bool(clean_log_prob.isfinite().all())
    assert torch.equal(q.log_prob(dirty), clean_log_prob)


@pytest.mark.parametrize("lengths", [(6, 7), (-1, 3)])
def test_lengths_beyond_the_padding_are_refused(lengths: tuple[int, int]) -> None:
    dmm = small_dmm()
    bad, z = torch.tensor(lengths), torch.zeros(2, 6, Z)
    message = rf"^lengths: expected values between 0 and T = 6, got {lengths[1 - (lengths[0] < 0)]}"
    for make in (
        lambda: dmm.prior(bad, 6),
        lambda: dmm.posterior(torch.zeros(2, 6, 7), bad),
        lambda: dmm.emission(z, bad),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(1, 1), (3, 5), (4, 4), (5, 7), (20, 100), (3, 5, 1), (2, 1, 4, 3)])
def test_noise_is_bitwise_equal_to_that_drawn_per_step(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    """``batch`` is ``[..., B, Z]``; a vectorised generator treats multiples of 16 specially."""
    *lead, z_dim = batch
    torch.manual_seed(8)
    eps = standard_noise(torch.Size((*lead, 5, z_dim)), torch.zeros((), dtype=dtype))
    after = torch.rand(3)
    torch.manual_seed(8)
    standard = Normal(torch.zeros(batch, dtype=dtype), torch.ones(batch, dtype=dtype))
    for t in range(5):
        assert torch.equal(eps[..., t, :], standard.rsample())
    assert torch.equal(after, torch.rand(3))


def draw_by_steps(dmm: DMM, kind: str, lead: tuple[int, ...]) -> Tensor:
    """The chain drawn by an ordinary per-step model."""
    start = dmm.z_q_0 if kind == "posterior" else dmm.z_0
    z_t, steps = start.expand(*lead, B, -1), []
    h = posterior_of(dmm, torch.float64).h
    for t in range(T):
        step = dmm.combiner(z_t, h[:, t]) if kind == "posterior" else dmm.trans(z_t)
        z_t = Normal(*step).rsample()
        steps.append(z_t)
    return torch.stack(steps, -2) * valid_steps().unsqueeze(-1)


@pytest.mark.parametrize("kind", ["prior", "posterior"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_a_draw_equals_the_chain_of_normal_draws_of_the_same_seed(kind: str, lead: tuple[int, ...]) -> None:
    dmm = small_dmm(dtype=torch.float64)
    q = posterior_of(dmm, torch.float64) if kind == "posterior" else dmm.prior(torch.tensor(LENGTHS), T)
    torch.manual_seed(9)
    expected = draw_by_steps(dmm, kind, lead)
    torch.manual_seed(9)
    wide = q.expand((*lead, B))
    torch.testing.assert_close(wide.rsample(), expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(9)
    torch.testing.assert_close(q.rsample(lead), expected, rtol=1e-12, atol=1e-12)


# --- emissions ------------------------------------------------------------------------------------


def by_steps(dmm: DMM, z: Tensor) -> Any:
    parameters = dmm.emitter(z)
    return Normal(*parameters) if isinstance(parameters, tuple) else Bernoulli(parameters)


@pytest.mark.parametrize("dims", [0, 2, 3])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_an_emission_is_the_sum_over_observed_values(kind: str, lead: tuple[int, ...], dims: int) -> None:
    dmm = small_dmm(dtype=torch.float64, emission=kind)
    batch = make_batch(emission=kind, dtype=torch.float64)
    mask = None if dims == 0 else missing_mask(batch, dims)
    keep = batch.mini_batch_mask if mask is None else mask
    keep = (keep if keep.dim() == 3 else keep[:, :, None]).bool()
    z = torch.randn(*lead, B, T, Z, dtype=torch.float64, requires_grad=True)
    p = dmm.emission(z, batch.mini_batch_seq_lengths, mask)
    assert p.batch_shape == (*lead, B)
    exact = by_steps(dmm, z)
    expected = exact.log_prob(batch.mini_batch).masked_fill(~keep, 0).sum((-2, -1))
    x = batch.mini_batch.masked_fill(~keep, NAN)
    log_prob = p.log_prob(x)
    assert_close(log_prob, expected, 1e-12)
    (grad,) = torch.autograd.grad(log_prob.sum(), z, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected.sum(), z, retain_graph=True)
    assert_close(grad, expected_grad, 1e-12)
    for name, value in gradients(expected.sum(), dmm).items():
        assert_close(gradients(log_prob.sum(), dmm)[name], value, 1e-12, name)
    inside = valid_steps()[:, :, None]
    torch.testing.assert_close(p.mean, exact.mean.masked_fill(~inside, 0))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_draws_of_an_emission_have_its_mean_whatever_is_masked(kind: str) -> None:
    batch = make_batch(emission=kind)
    p = distribution(kind, mask=missing_mask(batch, 3))
    with torch.no_grad():
        x, mean = p.sample((3000,)), p.mean
        assert bool((x[:, ~valid_steps()] == 0).all())
        inside = x[:, valid_steps()]
        assert_means_agree(inside, mean[valid_steps()])
        if kind == "gaussian":
            scale = small_dmm(emission=kind).emitter(p.z)[1][valid_steps()]
            assert_means_agree((inside - mean[valid_steps()]).square(), scale.square())
        else:
            assert bool(((x == 0) | (x == 1)).all())


def test_a_draw_of_a_gaussian_emission_is_differentiable_in_z_and_the_weights() -> None:
    dmm = small_dmm(dtype=torch.float64, emission="gaussian")
    z = torch.randn(B, T, Z, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    x = dmm.emission(z, torch.tensor(LENGTHS)).rsample()
    torch.manual_seed(3)
    by_hand = torch.stack([by_steps(dmm, z[:, t]).rsample() for t in range(T)], 1)
    by_hand = by_hand * valid_steps()[:, :, None]
    torch.testing.assert_close(x, by_hand)
    ours, theirs = (torch.autograd.grad(v.square().sum(), z)[0] for v in (x, by_hand))
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(B, T + 1), r"^mask: expected shape \(4, 6\) or \(4, 6, 5\), got .* \(4, 7\)"),
        (torch.full((B, T), 0.5), "^mask: expected values 0 or 1, got 0.5"),
        (torch.ones(B, T, device="meta"), "^mask: expected a dense tensor on cpu, got .* on meta"),
    ],
)
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_a_bad_mask_of_an_emission_is_refused(kind: str, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution(kind, mask=mask)


# --- autocast, and values of another kind ---------------------------------------------------------------


def half_by_autocast(*shape: int) -> Tensor:
    """Values as returned by a layer under autocast."""
    return torch.nn.functional.linear(torch.randn(*shape), torch.eye(shape[-1]))


@pytest.mark.parametrize("inside", [True, False], ids=["made within", "made before"])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
def test_an_emission_under_autocast_accepts_half_latents(kind: str, inside: bool) -> None:
    p = distribution(kind)
    x = torch.zeros(B, T, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = half_by_autocast(*p.z.shape)
        assert z.dtype == torch.bfloat16
        same = type(p)(z if inside else z.float(), p.emitter, p.lengths)
        log_prob = same.log_prob(x)
    assert_close(log_prob, type(p)(z.float(), p.emitter, p.lengths).log_prob(x), 1e-6)


def test_chains_under_autocast_accept_half_parameters() -> None:
    prior, posterior = distribution("prior"), distribution("posterior")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, z_q_0 = half_by_autocast(*posterior.h.shape), half_by_autocast(*posterior.z_q_0.shape)
        q = MarkovPosterior(h, z_q_0, posterior.combiner, posterior.lengths)
        z = q.rsample()
        p = MarkovPrior(half_by_autocast(*prior.z_0.shape), prior.transition, prior.lengths, T)
        assert bool(q.log_prob(z).isfinite().all())
        assert bool(p.log_prob(z).isfinite().all())


@pytest.mark.parametrize("kind", ["prior", "posterior", "mean field", "bernoulli", "gaussian"])
def test_a_value_of_another_kind_is_named(kind: str) -> None:
    p = distribution(kind)
    value = torch.zeros(B, T, p.event_shape[-1])
    for wrong in (value.to_sparse(), value.double(), value.to("meta"), value.long()):
        with pytest.raises((ValueError, TypeError), match=r"^value: expected"):
            p.log_prob(wrong)
        if kind not in GUIDES and wrong.dtype != torch.int64:
            with (
                torch.autocast("cpu", dtype=torch.bfloat16),
                pytest.raises((ValueError, TypeError), match=r"^[\w.]+: expected"),
            ):
                p.log_prob(wrong)


# --- networks in place of weights, and the Gaussian of single steps ------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n, h: MarkovPrior(torch.zeros(Z), n, LENGTH, T), "transition: expected a network of z_{t-1}"),
        (lambda n, h: MarkovPosterior(h, torch.zeros(Z), n, LENGTH), "combiner: expected .* z_{t-1} and h_t"),
        (lambda n, h: MeanFieldPosterior(h, n, Z, LENGTH), "combiner: expected a network of h_t"),
        (lambda n, h: BernoulliEmission(h, n, LENGTH, output_dim=D), "emitter: expected a network of z_t"),
        (lambda n, h: GaussianEmission(h, n, LENGTH, output_dim=D), "emitter: expected a network of z_t"),
    ],
)
def test_a_network_of_other_arguments_is_named(make: Any, message: str) -> None:
    for network in (lambda: None, lambda a, b, c: None):
        with pytest.raises(TypeError, match=f"^{message}, got function"):
            make(network, torch.zeros(B, T, 7))


def flowed(batch: tuple[int, ...] = (B,)) -> FlowedNormal:
    scale = torch.linspace(0.5, 1.5, Z).expand(*batch, Z)
    return FlowedNormal(torch.ones(*batch, Z), scale, small_dmm(**FLOWS).iafs)


def test_a_flowed_normal_expands_as_a_normal_does() -> None:
    one = flowed((1, B))
    wide = one.expand((5, 2, B))
    z = wide.sample((3,))
    assert (z.shape, wide.log_prob(z).shape) == ((3, 5, 2, B, Z), (3, 5, 2, B))
    torch.testing.assert_close(wide.log_prob(z), one.log_prob(z))
    for shape in ((B,), (2, 1), (5, B + 1), ()):
        with pytest.raises(ValueError, match=r"^batch_shape: expected one that \(1, 4\) broadcasts to, got"):
            one.expand(shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flowed().log_prob(torch.zeros(B, Z + 1)), r"value: expected shape \(\.\.\., 3\)"),
        (lambda: flowed().log_prob(torch.zeros(B + 1, Z)), r"value: expected leading dimensions that"),
        (lambda: flowed().log_prob(torch.zeros(B, Z).double()), r"value: expected float32"),
        (
            lambda: FlowedNormal(torch.zeros(2), torch.ones(2), small_dmm(**FLOWS).iafs),
            r"flows\[0\]: expected",
        ),
        (lambda: FlowedNormal(torch.zeros(Z), -torch.ones(Z), ()), r"scale: expected numbers from 0, got -1"),
    ],
)
def test_bad_arguments_of_a_flowed_normal_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
