"""Emissions, past data, controls and masks in a model, against one written a step and a row at a time."""

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, NegativeBinomial, Normal, Poisson, kl_divergence

from dmm_fast import DMM, ops
from dmm_fast.infer import GraphedSVI, SequenceELBO, importance_nll
from dmm_fast.optim import PyroClippedAdam
from tests.device import cpu_only
from tests.helpers_graph import RecordedGraphs
from tests.helpers_model import LENGTHS, SIZES, assert_close, assert_same_step, loss_and_grads, small_dmm
from tests.test_family import combined, conditional, noise

pytestmark = cpu_only

DOUBLE = torch.float64
B, T, D, Z = len(LENGTHS), max(LENGTHS), SIZES["input_dim"], SIZES["z_dim"]
U, S = 2, 3


class Laplacian(nn.Module):
    """A user-defined emission."""

    def __init__(self, width: int = Z) -> None:
        super().__init__()
        self.loc = nn.Linear(width, D)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        return -(x - self.loc(z)).abs() - 0.6931471805599453

    def mean(self, z: Tensor) -> Tensor:
        loc: Tensor = self.loc(z)
        return loc

    def sample(self, z: Tensor) -> Tensor:
        return torch.distributions.Laplace(self.loc(z), 1.0).sample()


EVERY_INPUT = {"augment": "both", "control_dim": U, "mask_input": True}
MODELS: dict[str, dict[str, Any]] = {
    "past in the transition": {"augment": "transition"},
    "past in the emission": {"augment": "emission"},
    "past in both": {"augment": "both"},
    "controls": {"control_dim": U},
    "static": {"static_dim": S, "inference": "mf-l"},
    "mask": {"mask_input": True},
    "all inputs": {**EVERY_INPUT, "static_dim": S, "inference": "st-lr"},
    "all inputs, flows": {**EVERY_INPUT, "num_iafs": 2, "iaf_dim": 6},
    "gaussian": {"emission": "gaussian", "augment": "both", "min_scale": 0.1},
    "poisson": {"emission": "poisson"},
    "negative_binomial": {"emission": "negative_binomial", "augment": "both", "control_dim": U},
    "categorical": {"emission": "categorical", "augment": "emission"},
    "nade": {"emission": "nade", "nade_dim": 4, "augment": "both"},
    "nade in an order": {"emission": "nade", "nade_dim": 4, "nade_order": [2, 0, 4, 3, 1]},
    "module": {"emission": Laplacian()},
    "module, past": {"emission": Laplacian(Z + D), "augment": "emission"},
}
each_model = pytest.mark.parametrize("name", MODELS)


def data_of(emission: Any, generator: torch.Generator) -> Tensor:
    """Data ``[B, T, D]`` of the kind of the emission."""
    number = torch.randn(B, T, D, generator=generator, dtype=DOUBLE)
    if emission in ("bernoulli", "nade"):
        return (number > 0.3).to(DOUBLE)
    if emission in ("poisson", "negative_binomial"):
        return (3 * number).abs().floor()
    if emission == "categorical":
        return nn.functional.one_hot(number.argmax(-1), D).to(DOUBLE)
    return number


def example(options: dict[str, Any], dims: int = 3) -> tuple[Any, ...]:
    """Arguments of model and guide, with about a third of the values missing; NaN there and past the ends."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor(LENGTHS)
    x = data_of(options.get("emission", "bernoulli"), generator)
    valid = torch.arange(T) < lengths[:, None]
    drawn = torch.rand((B, T, D)[:dims], generator=generator) > 0.35
    mask = drawn & (valid if dims == 2 else valid[..., None])
    observed = mask if dims == 3 else mask[..., None]
    controls = torch.randn(B, T, U, generator=generator, dtype=DOUBLE).masked_fill(
        ~valid[..., None], torch.nan
    )
    static = torch.randn(B, S, generator=generator, dtype=DOUBLE)
    return (
        x.masked_fill(~observed, torch.nan),
        None,
        mask.to(DOUBLE),
        lengths,
        0.7,
        controls if "control_dim" in options else None,
        static if "static_dim" in options else None,
    )


# --- the oracle -------------------------------------------------------------------------------------------


def log_emission(dmm: DMM, x: Tensor, seen: Tensor, given: Tensor) -> Tensor:
    """log p(x_t | given) of the observed features, one at a time if they are dependent."""
    net: Any = dmm.emitter
    kind = dmm._emission
    if kind == "module":
        return (net.log_prob(x, given) * seen).sum()
    out = net(given)
    if kind == "categorical":
        if bool((x * seen).any()):
            return Categorical(out).log_prob((x * seen).argmax())
        return out[~seen].sum().log() if not seen.all() else torch.zeros((), dtype=DOUBLE)
    if kind == "nade":
        logits, state = out
        total = torch.zeros((), dtype=DOUBLE)
        order = range(D) if dmm.nade_order is None else dmm.nade_order.tolist()
        for place, d in enumerate(order):
            if seen[d]:
                p = torch.sigmoid(logits[place] + net.read[place] @ torch.sigmoid(state))
                total = total + Bernoulli(p).log_prob(x[d])
                state = state + x[d] * net.write[place]
        return total
    if kind == "gaussian":
        return (Normal(out[0], out[1] + dmm.min_scale).log_prob(x) * seen).sum()
    if kind == "negative_binomial":
        mean, count = out
        return (NegativeBinomial(count, mean / (mean + count)).log_prob(x) * seen).sum()
    return ((Poisson if kind == "poisson" else Bernoulli)(out).log_prob(x) * seen).sum()


def row_terms(dmm: DMM, args: tuple[Any, ...], b: int, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(x | z), log p(z), log q(z) and the analytic KL of one row."""
    x, _, mask, lengths, _, controls, static = args
    n = int(lengths[b])
    seen = (mask if mask.dim() == 3 else mask[..., None].expand_as(x))[b, :n].bool()
    x = torch.where(seen, x[b, :n], 0.0)
    more = [] if controls is None else [controls[b, :n]]
    more += [] if static is None else [static[b].expand(n, S)]
    read = torch.cat([x, *([seen.to(DOUBLE)] if dmm.inputs.mask_input else []), *more], -1)
    h, terms = combined(dmm, read)
    zero = torch.zeros((), dtype=DOUBLE)
    log_x, log_p, log_q, kl = zero, zero, zero, zero
    before, z_prev, x_prev = dmm.z_q_0, dmm.z_0, torch.zeros(D, dtype=DOUBLE)
    for t in range(n):
        q = conditional(dmm, h[t], terms, before)
        z = q.loc + q.scale * eps[t]
        log_q = log_q + q.log_prob(z).sum()
        for flow in dmm.iafs:
            mean, log_scale = flow.arn(z)
            z = log_scale.exp() * z + mean
            log_q = log_q - log_scale.sum()
        past = [x_prev] if dmm.augment in ("transition", "both") else []
        p = Normal(*dmm.trans(torch.cat([z_prev, *past, *(part[t] for part in more)])))
        log_p, kl = log_p + p.log_prob(z).sum(), kl + kl_divergence(q, p).sum()
        past = [x_prev] if dmm.augment in ("emission", "both") else []
        log_x = log_x + log_emission(dmm, x[t], seen[t], torch.cat([z, *past]))
        z_prev, before, x_prev = z, None if before is None else z, x[t]
    return log_x, log_p, log_q, kl


def oracle(dmm: DMM, args: tuple[Any, ...], analytic: bool = False) -> tuple[float, dict[str, Tensor]]:
    """The negative ELBO with the noise of seed 5, and the gradient of every parameter."""
    dmm.zero_grad(set_to_none=True)
    eps, loss = noise(5, B, T), torch.zeros((), dtype=DOUBLE)
    with ops.use_backend("reference"):
        for b in range(B):
            log_x, log_p, log_q, kl = row_terms(dmm, args, b, eps[b])
            loss = loss - log_x + args[4] * (kl if analytic else log_q - log_p)
        loss.backward()
    return loss.item(), {name: p.grad for name, p in dmm.named_parameters()}


def build(name: str, dims: int = 3) -> tuple[DMM, tuple[Any, ...]]:
    """A model of a seed at which no gradient is zero, and its arguments."""
    args = example(MODELS[name], dims)
    for seed in range(20):
        dmm = small_dmm(seed, DOUBLE, **deepcopy(MODELS[name]))
        _, grads = oracle(dmm, args)
        if all(grad is not None and grad.norm() > 0 for grad in grads.values()):
            return dmm, args
    raise AssertionError("expected a model without dead units")


# --- the tests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3], ids=["steps missing", "values missing"])
@each_model
def test_elbo_and_gradients_equal_the_oracle(name: str, dims: int) -> None:
    dmm, args = build(name, dims)
    truth = oracle(dmm, args)
    for elbo in (Trace_ELBO(), SequenceELBO(Trace_ELBO())):
        assert_same_step(loss_and_grads(dmm, args, elbo), truth, 1e-9)


@each_model
def test_sequence_sites_equal_step_sites(name: str) -> None:
    dmm, args = build(name)
    ours = loss_and_grads(dmm, args, Trace_ELBO())
    dmm.per_step_sites = True
    assert_same_step(loss_and_grads(dmm, args, Trace_ELBO()), ours, 1e-9)


@pytest.mark.parametrize("name", [name for name, options in MODELS.items() if "num_iafs" not in options])
def test_analytic_kl_equals_the_oracle(name: str) -> None:
    dmm, args = build(name)
    truth = oracle(dmm, args, analytic=True)
    for elbo in (TraceMeanField_ELBO(), SequenceELBO(TraceMeanField_ELBO())):
        assert_same_step(loss_and_grads(dmm, args, elbo), truth, 1e-9)


@each_model
def test_particles_share_data_and_controls(name: str) -> None:
    """Densities of several draws at once equal those of each draw."""
    dmm, args = build(name)
    with torch.no_grad():
        batch = dmm.mini_batch(*args)
        inputs = dmm.transition_inputs(batch)
        prior = dmm.prior(batch.lengths, batch.T, *([] if inputs is None else [inputs]))
        z = dmm.posterior(dmm.encode(batch), batch.lengths).rsample((3,))

        def density(z: Tensor) -> Tensor:
            emission = dmm.emission(dmm.emission_inputs(z, batch), batch.lengths, batch.mask)
            return prior.log_prob(z) + emission.log_prob(batch.x)

        assert_close(density(z), torch.stack([density(each) for each in z]), 1e-12)
        assert bool(importance_nll(dmm, args, 7, 4).isfinite().all())


@each_model
def test_steps_from_a_graph_are_plain_steps(name: str) -> None:
    """``GraphedSVI`` with arguments by position, controls included."""
    losses = []
    for options in ({"capturer": RecordedGraphs()}, {"max_graphs": 0}):
        pyro.clear_param_store()
        dmm, args = build(name)
        optimizer = PyroClippedAdam({"lr": 1e-2, "capturable": True})
        svi = GraphedSVI(dmm.model, dmm.guide, optimizer, SequenceELBO(Trace_ELBO()), **options)
        torch.manual_seed(2)
        losses.append([float(svi.step(*args)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert all(a != b for a, b in pairwise(losses[0]))


def test_controls_by_name() -> None:
    dmm, args = build("controls")
    optimizer = PyroClippedAdam({"lr": 1e-2})
    svi = SVI(dmm.model, dmm.guide, optimizer, Trace_ELBO())
    torch.manual_seed(2)
    by_name = svi.evaluate_loss(*args[:5], controls=args[5])
    torch.manual_seed(2)
    assert by_name == svi.evaluate_loss(*args)


@each_model
def test_the_model_draws_valid_observations(name: str) -> None:
    """Without data each x_t is drawn, and enters the next step in models with past data."""
    options = MODELS[name]
    dmm, args = build(name)
    dmm.per_step_sites = True
    torch.manual_seed(3)
    with torch.no_grad(), poutine.block():
        x = torch.stack(dmm.model(None, None, None, *args[3:]), 1)
    assert x.shape == (B, T, D)
    # The draws pass the model's check of values.
    valid = (torch.arange(T) < args[3][:, None])[..., None]
    dmm.mini_batch(torch.where(valid, x, 0.0), None, None, *args[3:])
    dmm.per_step_sites = False
    if "augment" in options:
        with pytest.raises(ValueError, match=r"^mini_batch: expected data, or per_step_sites=True: each x_t"):
            dmm.model(None, None, None, *args[3:])
    else:
        with torch.no_grad(), poutine.block():
            assert dmm.model(None, None, None, *args[3:]).shape == (B, T, D)


def test_a_module_with_one_output_per_step() -> None:
    class Norm(nn.Module):
        def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
            return -(x.sum(-1) - z.sum(-1)).abs()

        def sample(self, z: Tensor) -> Tensor:
            return z.new_zeros(*z.shape[:-1], D)

    dmm = small_dmm(0, DOUBLE, emission=Norm())
    x, lengths = torch.randn(B, T, D, dtype=DOUBLE), torch.tensor(LENGTHS)
    z = torch.randn(2, B, T, Z, dtype=DOUBLE)
    valid = (torch.arange(T) < lengths[:, None]).to(DOUBLE)
    expected = (-(x.sum(-1) - z.sum(-1)).abs() * valid).sum(-1)
    assert_close(dmm.emission(z, lengths).log_prob(x), expected, 1e-12)
    # A mask of features may only exclude whole steps.
    mask = torch.ones(B, T, D)
    mask[0, 2] = 0
    left = expected + ((x.sum(-1) - z.sum(-1)).abs() * (1 - mask[..., 0])).sum(-1)
    assert_close(dmm.emission(z, lengths, mask).log_prob(x), left, 1e-12)
    mask[0, 2, 1] = 1
    with pytest.raises(ValueError, match=r"^mask: expected whole steps, since emission.log_prob returns one"):
        dmm.emission(z, lengths, mask).log_prob(x)
    with pytest.raises(NotImplementedError, match=r"^mean: Norm has no method mean"):
        _ = dmm.emission(z, lengths).mean


# --- what is refused --------------------------------------------------------------------------------------

NAN_CONTROLS = torch.full((B, T, U), torch.nan, dtype=DOUBLE)
COUNTS, REALS = torch.full((B, T, D), 3.0), torch.full((B, T, D), 0.5)


@pytest.mark.parametrize(
    ("emission", "x", "message"),
    [
        (
            "bernoulli",
            COUNTS,
            r"0 or 1 .*, got 3.0 at \(0, 0, 0\) \(emission='poisson' or 'negative_binomial' is",
        ),
        ("nade", REALS, r"0 or 1 .*, got 0.5 at \(0, 0, 0\) \(emission='gaussian' is for such data\)$"),
        ("poisson", REALS, r"a whole number from 0 .*, got 0.5 at .* \(emission='gaussian' is"),
        ("poisson", -COUNTS, r"a whole number from 0 .*, got -3.0 at .* \(emission='gaussian' is"),
        (
            "categorical",
            torch.ones(B, T, D),
            r"0 or 1, and one 1 a step, .*, got 5 of them at \(0, 0\) \(emission='b",
        ),
        ("categorical", torch.zeros(B, T, D), r"0 or 1, and one 1 a step, .*, got 0 of them at \(0, 0\)"),
        ("categorical", COUNTS, r"0 or 1, and one 1 a step, .*, got 3.0 at .* \(emission='poisson' or"),
        ("gaussian", COUNTS.log() * torch.inf, r"a finite number .*, got inf at \(0, 0, 0\)$"),
        ("poisson", COUNTS * torch.nan, r"a whole number from 0 .*, got nan at \(0, 0, 0\)$"),
    ],
)
def test_data_of_another_kind_are_refused_and_the_right_emission_is_named(
    emission: str, x: Tensor, message: str
) -> None:
    dmm = small_dmm(emission=emission)
    with pytest.raises(
        ValueError, match=rf"^mini_batch: expected {message}" if message[0] == "a" else message
    ):
        dmm.mini_batch(x, None, None, torch.tensor(LENGTHS))


def test_a_category_may_be_missing() -> None:
    dmm = small_dmm(emission="categorical")
    x, mask = torch.zeros(1, 1, D), torch.ones(1, 1, D)
    mask[..., 2] = 0
    dmm.mini_batch(x, None, mask, torch.tensor([1]))
    x[..., 1] = 1
    dmm.mini_batch(x, None, mask, torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"control_dim": U}, {5: None}, r"^controls: expected "),
        ({"control_dim": U}, {5: torch.zeros(B, T, U + 1)}, r"^controls: expected shape \(4, 6, 2\), got"),
        ({"control_dim": U}, {5: torch.zeros(B, T, U)}, r"^controls: expected float64"),
        (
            {"control_dim": U},
            {5: torch.full((B, T, U), torch.nan, dtype=DOUBLE)},
            r"^controls: expected finite",
        ),
        ({"static_dim": S}, {6: torch.zeros(B, dtype=DOUBLE)}, r"^static: expected shape \(4, 3\), got"),
        ({}, {5: torch.zeros(B, T, U)}, r"^controls: expected None for a model of control_dim=0, got"),
        ({}, {6: torch.zeros(B, S)}, r"^static: expected None for a model of static_dim=0, got"),
    ],
)
def test_controls_that_do_not_fit_are_refused(
    options: dict[str, int], change: dict[int, Any], message: str
) -> None:
    dmm, args = small_dmm(0, DOUBLE, **options), list(example(options))
    for i, value in change.items():
        args[i] = value
    for program in (dmm.model, dmm.guide, dmm.mini_batch):
        with pytest.raises((ValueError, TypeError), match=message):
            program(*args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augment": "guide"},
            r"^augment: expected None or one of transition, emission, both, got str",
        ),
        ({"augment": True}, r"^augment: expected None or one of"),
        ({"control_dim": -1}, r"^control_dim: expected"),
        ({"static_dim": 1.5}, r"^static_dim: expected"),
        ({"mask_input": 1}, r"^mask_input: expected bool"),
        ({"nade_dim": 0}, r"^nade_dim: expected"),
        ({"nade_order": [0, 1, 2, 3, 3]}, r"^nade_order: expected a permutation of 0 to 4, got"),
        ({"nade_order": torch.randperm(4)}, r"^nade_order: expected a permutation of 0 to 4, got"),
        ({"nade_order": [4, 3, 2, 1, 0]}, r"^nade_order: expected None unless emission='nade', got"),
        ({"nade_order": [0, 1]}, r"^nade_order: expected a permutation of 0 to 4, got"),
        (
            {"emission": nn.Linear(3, 5)},
            r"^emission: expected a module with log_prob\(x, z\) and sample\(",
        ),
        (
            {"emission": "Bernoulli"},
            r"^emission: expected one of bernoulli, .*, or a module, got str 'B",
        ),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        DMM(**SIZES, **options)


def test_missing_data_in_units_are_zero_to_the_next_step() -> None:
    dmm, args = build("gaussian")
    dmm.standardize(torch.where(args[2].bool(), 3 * args[0] + 2, torch.nan), args[3])
    ours = loss_and_grads(dmm, args, Trace_ELBO())
    dmm.per_step_sites = True
    assert_same_step(loss_and_grads(dmm, args, Trace_ELBO()), ours, 1e-9)


def test_an_order_may_be_a_tensor() -> None:
    order = torch.tensor([2, 0, 4, 3, 1])
    for given in (order, order.numpy(), order.tolist()):
        dmm = DMM(**SIZES, emission="nade", nade_order=given)
        assert torch.equal(dmm.state_dict()["nade_order"], order)
