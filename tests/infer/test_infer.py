"""Evaluation and sampling, compared with plain loops or with cases computed by hand."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from dmm_fast import DMM
from dmm_fast.data import SequenceSet
from dmm_fast.infer import (
    ElboEvaluation,
    evaluate_elbo,
    evaluate_importance_nll,
    forecast,
    generate,
    importance_nll,
    log_weights,
    reconstruct,
)
from tests.helpers_model import (
    LENGTHS,
    SIZES,
    assert_close,
    assert_means_agree,
    make_batch,
    missing_mask,
    repeat,
    set_linear,
    small_dmm,
)

B, T, D, Z = len(LENGTHS), max(LENGTHS), 5, 3
LOG_2 = math.log(2.0)


def weights_by_loop(dmm: DMM, batch: Any, num_particles: int) -> Tensor:
    """``[P, B]``, one row and one step at a time, from ordinary distributions."""
    x, _, mask, lengths = batch
    eps = torch.stack([torch.randn(num_particles, B, Z, dtype=x.dtype) for _ in range(T)], -2)
    rows = []
    for b in range(B):
        n = int(lengths[b])
        h = dmm.rnn(x[b : b + 1, :n], dmm.h_0[0, 0], lengths[b : b + 1])[0]
        z_q = dmm.z_q_0.expand(num_particles, -1)
        z_p = dmm.z_0.expand(num_particles, -1)
        total = torch.zeros(num_particles, dtype=x.dtype)
        for t in range(n):
            q, p = Normal(*dmm.combiner(z_q, h[t])), Normal(*dmm.trans(z_p))
            z_q = z_p = q.loc + q.scale * eps[:, b, t]
            likelihood = Bernoulli(dmm.emitter(z_q)).log_prob(x[b, t]) * mask[b, t]
            total = total + (p.log_prob(z_p) - q.log_prob(z_q)).sum(-1) + likelihood.sum(-1)
        rows.append(total)
    return torch.stack(rows, -1)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("missing", [0, 2, 3])
def test_log_weights_equal_those_of_a_plain_loop(missing: int, per_step_sites: bool) -> None:
    dmm = small_dmm(dtype=torch.float64, per_step_sites=per_step_sites)
    x, _, mask, lengths = batch = make_batch(dtype=torch.float64)
    mask = missing_mask(batch, missing) if missing else mask
    x = x * (mask if missing == 3 else mask[:, :, None])
    wide = mask if missing == 3 else mask[:, :, None].expand_as(x)
    torch.manual_seed(6)
    got = log_weights(dmm, (x, None, mask, lengths), 4)
    torch.manual_seed(6)
    assert_close(got, weights_by_loop(dmm, (x, None, wide, lengths), 4), 1e-10)


def test_log_weights_are_differentiable_and_importance_nll_is_not() -> None:
    dmm, batch = small_dmm(), make_batch()
    assert log_weights(dmm, batch, 2).requires_grad
    assert not importance_nll(dmm, batch, 2).requires_grad


def test_weights_of_flows_are_finite_and_vary() -> None:
    dmm, batch = small_dmm(num_iafs=2, iaf_dim=6), make_batch()
    weights = log_weights(dmm, batch, 50)
    assert weights.shape == (50, B)
    assert bool(weights.isfinite().all())
    assert bool((weights.std(0) > 0.01).all())


# --- importance sampling --------------------------------------------------------------------------


@pytest.mark.parametrize(("num_particles", "chunk_size"), [(30, 10), (35, 10), (7, 100), (5, 5)])
def test_chunks_are_pooled_into_one_mean_of_weights(num_particles: int, chunk_size: int) -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    torch.manual_seed(6)
    nll = importance_nll(dmm, batch, num_particles, chunk_size)
    torch.manual_seed(6)
    chunks, left = [], num_particles
    while left > 0:
        chunks.append(log_weights(dmm, batch, min(chunk_size, left)))
        left -= chunk_size
    weights = torch.cat(chunks)
    assert weights.shape == (num_particles, B)
    assert_close(nll, -(weights.exp().mean(0).log().detach()), 1e-12)


def test_the_estimate_does_not_depend_on_the_chunks() -> None:
    dmm, batch = small_dmm(), make_batch()
    by_chunk = [
        torch.stack([importance_nll(dmm, batch, 24, chunk) for _ in range(60)]).double()
        for chunk in (24, 12, 10)
    ]
    assert_means_agree(by_chunk[0], by_chunk[1])
    assert_means_agree(by_chunk[0], by_chunk[2])


def test_weights_are_never_pooled_over_the_batch() -> None:
    """With rows of different likelihoods, pooling over rows first would give another result."""
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    torch.manual_seed(6)
    weights = log_weights(dmm, batch, 20).detach()
    torch.manual_seed(6)
    nll = importance_nll(dmm, batch, 20)
    assert nll.shape == (B,)
    assert_close(nll, math.log(20) - weights.logsumexp(0), 1e-12)
    pooled = math.log(20) - weights.sum(-1).logsumexp(0)
    assert abs(nll.sum() - pooled) > 0.1
    assert nll.max() - nll.min() > 1.0
    # The expected estimate of a row does not depend on the other rows.
    alone = tuple(v[1:2] if isinstance(v, Tensor) else v for v in batch)
    beside = torch.stack([importance_nll(dmm, batch, 100)[1] for _ in range(40)])
    single = torch.stack([importance_nll(dmm, alone, 100)[0] for _ in range(40)])
    assert_means_agree(beside[:, None], single[:, None])


def total_nll(dmm: DMM, batch: Any, num_particles: int) -> float:
    return importance_nll(dmm, batch, num_particles).sum().item()


def test_more_particles_tighten_the_bound_below_the_elbo() -> None:
    dmm, batch = small_dmm(), make_batch()
    means = {n: repeat(30, partial(total_nll, dmm, batch, n)).mean() for n in (1, 10, 300)}
    assert means[300] < means[10] < means[1]
    torch.manual_seed(6)
    negative_elbo = -log_weights(dmm, batch, 50).mean(0)
    torch.manual_seed(6)
    assert bool((importance_nll(dmm, batch, 50) <= negative_elbo).all())


def test_weights_far_below_one_do_not_underflow() -> None:
    dmm = small_dmm(emission="gaussian")
    with torch.no_grad():
        dmm.emitter.lin_hidden_to_loc.bias.add_(200.0)
    nll = importance_nll(dmm, make_batch(emission="gaussian"), 10)
    assert bool((nll > 1e4).all())
    assert bool(nll.isfinite().all())


# --- nats per time step ---------------------------------------------------------------------------


def exact_dmm(dtype: torch.dtype = torch.float64) -> DMM:
    """Posterior and prior are equal and x does not depend on z, so each weight is the likelihood."""
    dmm = DMM(**SIZES).to(dtype)
    set_linear(dmm.trans.lin_proposed_mean_hidden_to_z, 0.0, 0.0)
    set_linear(dmm.trans.lin_z_to_loc, 0.0, 0.0)
    set_linear(dmm.trans.lin_sig, 0.0, 0.3)
    set_linear(dmm.combiner.lin_hidden_to_loc, 0.0, 0.0)
    set_linear(dmm.combiner.lin_hidden_to_scale, 0.0, 0.3)
    set_linear(dmm.emitter.lin_hidden_to_input, 0.0, math.log(3.0))
    return dmm


# With p(1) = 3/4, a step of ones costs D log(4/3) and a step of zeros D log 4.
ONES, ZEROS = D * math.log(4 / 3), D * math.log(4)


def hand_set(dtype: torch.dtype = torch.float64) -> SequenceSet:
    """Three sequences: 4 steps of ones, 1 of zeros, 5 of zeros; lengths unsorted."""
    x = torch.zeros(3, 5, D, dtype=dtype)
    x[0, :4] = 1.0
    return SequenceSet(x, torch.tensor([4, 1, 5]))


@pytest.mark.parametrize("mini_batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("evaluate", [evaluate_elbo, evaluate_importance_nll])
def test_both_averages_of_a_case_by_hand(
    evaluate: Callable[..., ElboEvaluation], dtype: torch.dtype, mini_batch_size: int
) -> None:
    got = evaluate(exact_dmm(dtype), hand_set(dtype), num_particles=3, mini_batch_size=mini_batch_size)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    assert got.total_over_total == pytest.approx((4 * ONES + 6 * ZEROS) / 10, rel=tol)
    assert got.mean_of_averages == pytest.approx((ONES + ZEROS + ZEROS) / 3, rel=tol)
    assert isinstance(got.total_over_total, float)
    assert isinstance(got.mean_of_averages, float)


def test_evaluate_elbo_is_the_mean_over_its_particles() -> None:
    dmm, (x, _, _, lengths) = small_dmm(), make_batch()
    data = SequenceSet(x, lengths)
    torch.manual_seed(6)
    got = evaluate_elbo(dmm, data, num_particles=9)
    torch.manual_seed(6)
    nats = -log_weights(dmm, data.batch(torch.arange(B)), 9).mean(0).double()
    assert got.total_over_total == pytest.approx(nats.sum().item() / sum(LENGTHS), rel=1e-6)
    assert got.mean_of_averages == pytest.approx((nats / lengths).mean().item(), rel=1e-6)
    torch.manual_seed(6)
    tighter = evaluate_importance_nll(dmm, data, num_particles=9)
    assert tighter.total_over_total < got.total_over_total


def test_evaluation_does_not_change_the_parameter_store_or_the_gradients() -> None:
    """Otherwise, the next model to be trained would find parameters of this one in the store."""
    dmm, (x, _, mask, lengths) = small_dmm(), make_batch()
    batch, data = (x, None, mask, lengths), SequenceSet(x, lengths)
    importance_nll(dmm, batch, 3)
    evaluate_elbo(dmm, data)
    evaluate_importance_nll(dmm, data, 3)
    reconstruct(dmm, batch)
    forecast(dmm, batch, 2)
    generate(dmm, 2, 2)
    assert all(p.grad is None for p in dmm.parameters())
    assert list(pyro.get_param_store()) == []


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("layers", [{}, {"num_iafs": 1, "iaf_dim": 6}, {"num_layers": 2}])
def test_shapes_of_draws(layers: dict[str, Any], emission: str, dtype: torch.dtype) -> None:
    dmm = small_dmm(dtype=dtype, emission=emission, **layers)
    batch = make_batch(dtype=dtype, emission=emission)
    reconstruction = reconstruct(dmm, batch)
    future, prior = forecast(dmm, batch, 4), generate(dmm, 2, 7)
    assert reconstruction.shape == (B, T, D)
    assert future.shape == (B, 4, D)
    assert prior.shape == (2, 7, D)
    past_end = batch.mini_batch_mask == 0
    assert bool((reconstruction[past_end] == 0).all())
    for value in (reconstruction, future, prior):
        assert value.dtype == dtype
        assert not value.requires_grad
        assert bool(value.isfinite().all())
    if emission == "bernoulli":
        inside = reconstruction[~past_end]
        assert bool(((inside > 0) & (inside < 1)).all())
        for value in (future, prior):
            assert bool(((value == 0) | (value == 1)).all())
    assert generate(dmm, 1, 1).shape == (1, 1, D)


@pytest.mark.parametrize("sample", ["reconstruct", "forecast", "generate"])
def test_a_seed_determines_the_draws(sample: str) -> None:
    dmm, batch = small_dmm(emission="gaussian"), make_batch(emission="gaussian")
    draw = {
        "reconstruct": lambda: reconstruct(dmm, batch),
        "forecast": lambda: forecast(dmm, batch, 3),
        "generate": lambda: generate(dmm, 2, 3),
    }[sample]
    torch.manual_seed(6)
    first, other = draw(), draw()
    torch.manual_seed(6)
    assert torch.equal(first, draw())
    assert not torch.equal(first, other)


TINY_SCALE = -40.0
"""A pre-activation whose softplus is about 4e-18."""


def counting_dmm() -> DMM:
    """z_t = x_t in the posterior, z_t = z_{t-1} + 1 in the prior, x_t = z_t, almost without noise."""
    dmm = DMM(1, 1, 2, 1, 1, emission="gaussian").double()
    set_linear(dmm.trans.lin_gate_hidden_to_z, 0.0, -1e3)
    set_linear(dmm.trans.lin_z_to_loc, 1.0, 1.0)
    set_linear(dmm.trans.lin_sig, 0.0, TINY_SCALE)
    set_linear(dmm.combiner.lin_z_to_hidden, 0.0, 0.0)
    set_linear(dmm.combiner.lin_hidden_to_loc, 2.0, 0.0)
    set_linear(dmm.combiner.lin_hidden_to_scale, 0.0, TINY_SCALE)
    set_linear(dmm.emitter.lin_z_to_hidden, [[1.0], [-1.0]], 0.0)
    set_linear(dmm.emitter.lin_hidden_to_hidden, torch.eye(2), 0.0)
    set_linear(dmm.emitter.lin_hidden_to_loc, [[1.0, -1.0]], 0.0)
    set_linear(dmm.emitter.lin_hidden_to_scale, 0.0, TINY_SCALE)
    with torch.no_grad():
        for name, value in (("weight_ih", 1.0), ("weight_hh", 0.0), ("bias_ih", 0.0)):
            dmm.rnn.get_parameter(f"{name}_l0").fill_(value)
        dmm.rnn.get_parameter("bias_hh_l0").zero_()
        dmm.z_0.fill_(50.0)
    return dmm


def test_a_forecast_continues_from_the_end_of_each_row() -> None:
    dmm, lengths = counting_dmm(), torch.tensor([2, 5, 1])
    x = torch.tensor([[3.0, 4, 0, 0, 0], [1, 9, 2, 8, 7], [20, 0, 0, 0, 0]]).double()[:, :, None]
    future = forecast(dmm, (x, None, None, lengths), 3).squeeze(-1)
    expected = torch.tensor([[5.0, 6, 7], [8, 9, 10], [21, 22, 23]]).double()
    torch.testing.assert_close(future, expected)
    dirty = x.masked_fill(torch.arange(5)[:, None] >= lengths[:, None, None], float("nan"))
    torch.testing.assert_close(forecast(dmm, (dirty, None, None, lengths), 3)[..., 0], expected)
    torch.testing.assert_close(reconstruct(dmm, (dirty, None, None, lengths)), x)
    prior = generate(dmm, 2, 4).squeeze(-1)
    torch.testing.assert_close(prior, torch.tensor([51.0, 52, 53, 54]).double().expand(2, 4))


def test_a_reconstruction_fills_in_what_is_missing() -> None:
    dmm, batch = small_dmm(), make_batch()
    mask = missing_mask(batch, 3)
    probs = reconstruct(dmm, (batch.mini_batch, None, mask, batch.mini_batch_seq_lengths))
    assert bool((probs[batch.mini_batch_mask.bool()] > 0).all())


def test_generated_data_have_the_mean_of_the_chain() -> None:
    dmm = small_dmm(dtype=torch.float64)
    x = generate(dmm, 3000, 3)
    z, probs = dmm.z_0.expand(3000, -1), []
    with torch.no_grad():
        for _ in range(3):
            z = Normal(*dmm.trans(z)).sample()
            probs.append(dmm.emitter(z))
    assert_means_agree(x, torch.stack(probs, 1))


# --- bad arguments --------------------------------------------------------------------------------


def on_batch(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: function(small_dmm(), make_batch(), *args)


def on_set(function: Callable[..., Any], **kwargs: Any) -> Callable[[], Any]:
    x, _, _, lengths = make_batch()
    return lambda: function(small_dmm(), SequenceSet(x, lengths), **kwargs)


@pytest.mark.parametrize("bad", [0, -1, -250])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_particles", lambda n: on_batch(log_weights, n)),
        ("num_particles", lambda n: on_batch(importance_nll, n)),
        ("chunk_size", lambda n: on_batch(importance_nll, 10, n)),
        ("num_particles", lambda n: on_set(evaluate_elbo, num_particles=n)),
        ("mini_batch_size", lambda n: on_set(evaluate_elbo, mini_batch_size=n)),
        ("num_particles", lambda n: on_set(evaluate_importance_nll, num_particles=n)),
        ("chunk_size", lambda n: on_set(evaluate_importance_nll, chunk_size=n)),
        ("mini_batch_size", lambda n: on_set(evaluate_importance_nll, mini_batch_size=n)),
        ("num_steps", lambda n: on_batch(forecast, n)),
        ("num_steps", lambda n: lambda: generate(small_dmm(), 2, n)),
        ("num_sequences", lambda n: lambda: generate(small_dmm(), n, 2)),
    ],
)
def test_a_count_is_positive(name: str, call: Callable[[int], Callable[[], Any]], bad: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a positive int, got {bad}$"):
        call(bad)()


@pytest.mark.parametrize(
    "call",
    [
        lambda dmm, b: importance_nll(dmm, b, 2),
        lambda dmm, b: reconstruct(dmm, b),
        lambda dmm, b: forecast(dmm, b, 2),
    ],
)
def test_a_bad_batch_is_named(call: Callable[[DMM, Any], Any]) -> None:
    dmm, (x, _, mask, lengths) = small_dmm(), make_batch()
    with pytest.raises(ValueError, match=r"^mini_batch: expected 0 or 1 .*, got 2.0"):
        call(dmm, (x + 2, None, mask, lengths))
    with pytest.raises(ValueError, match=r"^mini_batch_seq_lengths: expected .*, got 7"):
        call(dmm, (x, None, mask, lengths + 1))
    with pytest.raises(ValueError, match=r"^(mini_)?batch: expected data .*, got None"):
        call(dmm, (None, None, mask, lengths))


def test_data_of_other_features_are_refused() -> None:
    data = SequenceSet(torch.zeros(2, 3, D + 1), torch.tensor([3, 2]))
    with pytest.raises(ValueError, match=r"^mini_batch: expected shape \(B, T, 5\)"):
        evaluate_elbo(small_dmm(), data)
    assert exact_dmm().mini_batch(*hand_set().batch(torch.arange(3))).lengths.tolist() == [4, 1, 5]
