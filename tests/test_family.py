"""Guides, recurrent networks and flows, compared with a model of single steps and rows in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from dmm_fast import DMM, ops
from dmm_fast._arguments import INFERENCE, NETWORKS
from dmm_fast.infer import SequenceELBO, importance_nll, latents
from dmm_fast.nn import InferenceNetwork, TwoWayNetwork
from tests.device import cpu_only
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    assert_close,
    assert_same_step,
    loss_and_grads,
    make_batch,
    missing_mask,
    small_dmm,
)

pytestmark = cpu_only

DOUBLE = torch.float64
Z = 3

GUIDES = [
    *((guide, "relu", {}) for guide in INFERENCE),
    *((guide, "relu", FLOWS) for guide in INFERENCE),
    *(("st-lr", kind, {}) for kind in NETWORKS[1:]),
    ("mf-l", "lstm", {"num_layers": 2}),
    ("st-l", "gru", {"num_layers": 2, **FLOWS}),
    ("st-lr", "tanh", {"num_layers": 2}),
    ("st-r", "relu", {"num_iafs": 4, "iaf_dim": 3}),
    ("st-r", "lstm", {"min_scale": 0.2, **FLOWS}),
    ("mf-lr", "relu", {"min_scale": 0.2}),
]

each_guide = pytest.mark.parametrize(
    ("inference", "rnn", "options"),
    GUIDES,
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)


# --- the oracle -------------------------------------------------------------------------------------------


def cell(layer: nn.Module, index: int, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A step of a layer of a recurrent network: the next ``h`` and, for an LSTM, the next cell state."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(layer, f"{name}_l{index}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h, c = state
    from_x, from_h = w_ih @ x + b_ih, w_hh @ h + b_hh
    if isinstance(layer, nn.LSTM):
        i, f, g, o = (from_x + from_h).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if isinstance(layer, nn.GRU):
        (r_x, u_x, n_x), (r_h, u_h, n_h) = from_x.chunk(3), from_h.chunk(3)
        reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(u_x + u_h)
        return (1 - update) * torch.tanh(n_x + reset * n_h) + update * h, c
    assert isinstance(layer, InferenceNetwork)
    return {"relu": torch.relu, "tanh": torch.tanh}[layer.nonlinearity](from_x + from_h), c


def hidden(network: nn.Module, x: Tensor, h_0: Tensor, backward: bool) -> list[Tensor]:
    """The ``h_t`` of one row, starting at its first or last step."""
    steps = list(x)[:: -1 if backward else 1]
    for index in range(int(network.num_layers)):  # type: ignore[arg-type]
        state, outputs = (h_0, torch.zeros_like(h_0)), []
        for each in steps:
            state = cell(network, index, each, state)
            outputs.append(state[0])
        steps = outputs
    return steps[:: -1 if backward else 1]


def combined(dmm: DMM, x: Tensor) -> tuple[list[Tensor], float]:
    """The sum of ``h_t`` over the directions for one row, and the number of directions."""
    if isinstance(dmm.rnn, TwoWayNetwork):
        left = hidden(dmm.rnn.left, x, dmm.h_0[0, 0], backward=False)
        right = hidden(dmm.rnn.right, x, dmm.h_0[1, 0], backward=True)
        return [a + b for a, b in zip(left, right, strict=True)], 2.0
    return hidden(dmm.rnn, x, dmm.h_0[0, 0], backward=not dmm.inference.endswith("-l")), 1.0


def conditional(dmm: DMM, h: Tensor, terms: float, before: Tensor | None) -> Normal:
    """q(z_t | z_{t-1}, x), without z_{t-1} in a mean-field guide."""
    net: Any = dmm.combiner
    c = h / terms
    if before is not None:
        c = (torch.tanh(net.lin_z_to_hidden(before)) + h) / (1 + terms)
    return Normal(net.lin_hidden_to_loc(c), F.softplus(net.lin_hidden_to_scale(c)) + dmm.min_scale)


def row_terms(
    dmm: DMM, x: Tensor, eps: Tensor, observed: Tensor
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """log p(x | z), log p(z), log q(z) of one row, and its z_t."""
    h, terms = combined(dmm, x)
    log_x = log_p = log_q = torch.zeros((), dtype=DOUBLE)
    before, prior_before, drawn = dmm.z_q_0, dmm.z_0, []
    for t in range(len(x)):
        q = conditional(dmm, h[t], terms, before)
        z = q.loc + q.scale * eps[t]
        log_q = log_q + q.log_prob(z).sum()
        for flow in dmm.iafs:
            mean, log_scale = flow.arn(z)
            log_scale = log_scale + (log_scale.clamp(-5.0, 3.0) - log_scale).detach()
            z = log_scale.exp() * z + mean
            log_q = log_q - log_scale.sum()
        log_p = log_p + Normal(*dmm.trans(prior_before)).log_prob(z).sum()
        log_x = log_x + (Bernoulli(dmm.emitter(z)).log_prob(x[t]) * observed[t]).sum()
        prior_before, before = z, None if before is None else z
        drawn.append(z)
    return log_x, log_p, log_q, drawn


def oracle(dmm: DMM, batch: Any, eps: Tensor, annealing: float) -> tuple[float, dict[str, Tensor]]:
    """The negative ELBO for given noise, and the gradient of every parameter."""
    dmm.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=DOUBLE)
    mask = batch.mini_batch_mask
    mask = mask if mask.dim() == 3 else mask.unsqueeze(-1).expand_as(batch.mini_batch)
    with ops.use_backend("reference"):
        for b, length in enumerate(batch.mini_batch_seq_lengths.tolist()):
            # Missing values are 0 for the guide.
            x = (batch.mini_batch * mask)[b, :length]
            log_x, log_p, log_q, _ = row_terms(dmm, x, eps[b], mask[b])
            loss = loss - (log_x + annealing * (log_p - log_q))
        loss.backward()
    return loss.item(), {name: p.grad for name, p in dmm.named_parameters()}


def noise(seed: int, B: int, T: int) -> Tensor:
    """``[B, T, Z]``: the noise of a guide after this seed, step by step."""
    torch.manual_seed(seed)
    return torch.stack([torch.randn(B, Z, dtype=DOUBLE) for _ in range(T)], dim=1)


def build(inference: str, rnn: str, options: dict[str, Any], **more: Any) -> DMM:
    """A model of a seed at which no gradient is zero."""
    for seed in range(20):
        dmm = small_dmm(seed, DOUBLE, inference=inference, rnn=rnn, **options, **more)
        _, grads = oracle(dmm, make_batch(dtype=DOUBLE), noise(5, len(LENGTHS), max(LENGTHS)), 0.7)
        if all(grad is not None and grad.norm() > 0 for grad in grads.values()):
            return dmm
    raise AssertionError("expected a model without dead units")


# --- the tests --------------------------------------------------------------------------------------------


@each_guide
def test_elbo_and_gradients_equal_the_oracle(inference: str, rnn: str, options: dict[str, Any]) -> None:
    dmm = build(inference, rnn, options)
    batch = make_batch(dtype=DOUBLE)
    batch = batch._replace(mini_batch_mask=missing_mask(batch, 3))
    truth = oracle(dmm, batch, noise(5, len(LENGTHS), max(LENGTHS)), 0.7)
    for elbo in (Trace_ELBO(), SequenceELBO(Trace_ELBO())):
        assert_same_step(loss_and_grads(dmm, batch, elbo, 0.7), truth, 1e-10)


@each_guide
def test_sequence_sites_equal_step_sites(inference: str, rnn: str, options: dict[str, Any]) -> None:
    dmm, batch = build(inference, rnn, options), make_batch(dtype=DOUBLE)
    ours = loss_and_grads(dmm, batch, Trace_ELBO(), 0.7)
    dmm.per_step_sites = True
    assert_same_step(loss_and_grads(dmm, batch, Trace_ELBO(), 0.7), ours, 1e-10)


@pytest.mark.parametrize("lengths", [(1,), (4,), (1, 1, 1)], ids=["B=1 T=1", "B=1", "T=1"])
@pytest.mark.parametrize("inference", INFERENCE)
@pytest.mark.parametrize("options", [{}, FLOWS], ids=["", "flows"])
def test_small_batches(inference: str, lengths: tuple[int, ...], options: dict[str, Any]) -> None:
    dmm = build(inference, "relu", options)
    batch = make_batch(lengths, dtype=DOUBLE)
    loss, grads = loss_and_grads(dmm, batch, SequenceELBO(Trace_ELBO()), 0.7)
    expected, truth = oracle(dmm, batch, noise(5, len(lengths), max(lengths)), 0.7)
    assert loss == pytest.approx(expected, rel=1e-10)
    for name, grad in truth.items():
        # With one step, W_hh only reads an initial state of zero.
        assert (grads[name] is None) == (grad is None)
        assert grad is None or torch.allclose(grads[name], grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("inference", INFERENCE)
@pytest.mark.parametrize("rnn", NETWORKS)
def test_analytic_kl_equals_the_oracle(inference: str, rnn: str) -> None:
    dmm, batch = build(inference, rnn, {}), make_batch(dtype=DOUBLE)
    eps = noise(5, len(LENGTHS), max(LENGTHS))
    expected = torch.zeros((), dtype=DOUBLE)
    for b, length in enumerate(LENGTHS):
        x = batch.mini_batch[b, :length]
        log_x, *_, drawn = row_terms(dmm, x, eps[b], torch.ones_like(x))
        h, terms = combined(dmm, x)
        q_before, p_before = dmm.z_q_0, dmm.z_0
        expected = expected - log_x
        for t in range(length):
            q = conditional(dmm, h[t], terms, q_before)
            expected = expected + 0.7 * kl_divergence(q, Normal(*dmm.trans(p_before))).sum()
            p_before, q_before = drawn[t], None if q_before is None else drawn[t]
    for elbo in (TraceMeanField_ELBO(), SequenceELBO(TraceMeanField_ELBO())):
        loss, _ = loss_and_grads(dmm, batch, elbo, 0.7)
        assert loss == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("options", [{}, FLOWS, {"min_scale": 0.1}], ids=["", "flows", "min_scale"])
@pytest.mark.parametrize("inference", INFERENCE)
def test_density_of_a_given_z_is_that_of_the_draw(inference: str, options: dict[str, Any]) -> None:
    """With particles as well; the gradient by a value excludes the noise."""
    dmm, batch = build(inference, "relu", options), make_batch(dtype=DOUBLE)
    checked = dmm.mini_batch(*batch)
    q = dmm.posterior(dmm.encode(checked), checked.lengths)
    torch.manual_seed(0)  # with no input of a ReLU near zero
    with torch.no_grad():
        z = q.rsample((2,))
        assert_close(q.log_prob(z.clone()), q.log_prob(z), 1e-10)
    value = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(q.log_prob, value, nondet_tol=0.0, atol=1e-6)


@pytest.mark.parametrize("inference", INFERENCE)
def test_values_past_the_end_have_no_effect(inference: str) -> None:
    for options in ({}, FLOWS, {"rnn": "lstm"}):
        dmm = small_dmm(dtype=DOUBLE, inference=inference, **options)
        batch = make_batch(dtype=DOUBLE)
        past = ~batch.mini_batch_mask.bool()
        poisoned = batch._replace(mini_batch=batch.mini_batch.masked_fill(past[..., None], float("nan")))
        clean = loss_and_grads(dmm, batch, Trace_ELBO())
        assert_same_bits(loss_and_grads(dmm, poisoned, Trace_ELBO()), clean)


def assert_same_bits(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == other[0]
    for name, grad in other[1].items():
        assert grad is not None, name
        assert torch.equal(one[1][name], grad), name


@pytest.mark.parametrize("inference", ["st-lr", "mf-lr"])
def test_left_and_right_are_directions_of_time(inference: str) -> None:
    """x_1 affects z_T through the left network, x_T affects z_1 through the right one."""
    dmm, batch = small_dmm(dtype=DOUBLE, inference=inference), make_batch((6,), dtype=DOUBLE)
    x = batch.mini_batch.clone().requires_grad_()
    checked = dmm.mini_batch(x, None, None, batch.mini_batch_seq_lengths)
    h = dmm.encode(checked)
    assert reach(h, x, 5, 0)
    assert reach(h, x, 0, 5)
    for side, sees_past in (("l", True), ("r", False)):
        one = small_dmm(dtype=DOUBLE, inference=f"{inference[:2]}-{side}")
        h = one.encode(one.mini_batch(x, None, None, batch.mini_batch_seq_lengths))
        assert reach(h, x, 5, 0) == sees_past
        assert reach(h, x, 0, 5) != sees_past


def reach(h: Tensor, x: Tensor, t: int, source: int) -> bool:
    (grad,) = torch.autograd.grad(h[0, t].sum(), x, retain_graph=True)
    return bool(grad[0, source].abs().sum() > 0)


@pytest.mark.parametrize("inference", INFERENCE)
def test_inference_functions_support_every_guide(inference: str) -> None:
    dmm, batch = small_dmm(inference=inference, **FLOWS), make_batch()
    drawn = latents(dmm, batch, 3, seed=1)
    assert drawn.z.shape == drawn.loc.shape == drawn.scale.shape == (3, len(LENGTHS), max(LENGTHS), Z)
    nll = importance_nll(dmm, batch, 20)
    assert bool(nll.isfinite().all())


def test_the_default_guide_is_that_of_the_example() -> None:
    torch.manual_seed(3)
    plain = DMM(input_dim=5, z_dim=3, emission_dim=4, transition_dim=6, rnn_dim=7)
    torch.manual_seed(3)
    named = DMM(
        input_dim=5, z_dim=3, emission_dim=4, transition_dim=6, rnn_dim=7, inference="st-r", rnn="relu"
    )
    for (name, p), (other_name, q) in zip(plain.named_parameters(), named.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"inference": "st"},
            r"^inference: expected one of st-r, st-l, st-lr, mf-r, mf-l, mf-lr, got str 'st'",
        ),
        ({"inference": None}, r"^inference: expected one of .*, got None"),
        ({"rnn": "RELU"}, r"^rnn: expected one of relu, tanh, lstm, gru, got str 'RELU'"),
        ({"rnn": nn.LSTM}, r"^rnn: expected one of"),
    ],
)
def test_wrong_names_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DMM(**wrong)


def test_requested_lstm_and_gru_cause_no_warning(recwarn: Callable[..., Any]) -> None:
    for rnn in ("lstm", "gru"):
        for inference in ("st-r", "mf-lr"):
            dmm, batch = small_dmm(inference=inference, rnn=rnn, rnn_dropout_rate=0.1), make_batch()
            loss_and_grads(dmm, batch, Trace_ELBO())
    assert not list(recwarn)  # type: ignore[call-overload]
