"""NADE emissions: a normalised density in any order, its draws, and missing values."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import nn, ops
from dmm_fast.distributions import NadeEmission
from dmm_fast.ops import NadeEmitterWeights
from tests import oracle
from tests.cases import Case
from tests.compare import backends_for, each_backend
from tests.device import cpu_only
from tests.inputs import build, differentiable

pytestmark = cpu_only

D, Z, E, U = 3, 2, 4, 5
ORDERS = [None, torch.tensor([2, 0, 1])]
COMPLETIONS = torch.tensor(list(product((0.0, 1.0), repeat=D)), dtype=torch.float64)


def emitter(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.NadeEmitter:
    """An emitter whose features depend strongly on one another."""
    torch.manual_seed(seed)
    made = nn.NadeEmitter(D, Z, E, U).to(dtype)
    with torch.no_grad():
        for parameter in (made.read, made.write):
            parameter.mul_(6.0)
    return made


def emission(
    made: nn.NadeEmitter, rows: int, as_network: bool = False, mask: Tensor | None = None, order: Any = None
) -> NadeEmission:
    """Emission of ``rows`` rows of one step, all of the same latents."""
    z = torch.tensor([0.3, -0.8]).to(made.read).expand(rows, 1, Z)
    lengths = torch.ones(rows, dtype=torch.int64)
    if as_network:
        return NadeEmission(z, made, lengths, mask, D, order, made.read, made.write)
    return NadeEmission(z, made.weights, lengths, mask, order=order)


def probabilities(made: nn.NadeEmitter, order: Tensor | None = None) -> Tensor:
    """The probability of each of the completions."""
    return emission(made, len(COMPLETIONS), order=order).log_prob(COMPLETIONS.unsqueeze(1)).exp().detach()


@pytest.mark.parametrize("as_network", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("missing", [(), (1,), (0, 2)])
def test_the_observed_features_have_a_normalised_density(
    missing: tuple[int, ...], order: Tensor | None, as_network: bool
) -> None:
    mask = torch.ones(len(COMPLETIONS), 1, D)
    mask[:, 0, missing] = 0.0
    x = COMPLETIONS.unsqueeze(1).masked_fill(mask == 0, float("nan"))
    for backend in backends_for("nade_emission_log_prob"):
        with ops.use_backend(backend):
            log_prob = emission(emitter(), len(x), as_network, mask, order).log_prob(x)
    # Each completion of the observed features occurs once for each of the missing ones.
    total = log_prob.exp().sum() / 2 ** len(missing)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_missing_features_at_the_end_of_the_order_are_summed_out(order: Tensor | None) -> None:
    made = emitter()
    last = int(order[-1]) if order is not None else D - 1
    mask = torch.ones(len(COMPLETIONS), 1, D)
    mask[:, 0, last] = 0.0
    marginal = emission(made, len(COMPLETIONS), mask=mask, order=order).log_prob(COMPLETIONS.unsqueeze(1))
    full = probabilities(made, order)
    flipped = COMPLETIONS.clone()
    flipped[:, last] = 1 - flipped[:, last]
    partner = [int((x == COMPLETIONS).all(-1).nonzero()) for x in flipped]
    torch.testing.assert_close(marginal.exp(), full + full[partner], rtol=0, atol=1e-12)


def test_an_order_equals_permuted_features() -> None:
    made, order = emitter(), ORDERS[1]
    assert order is not None
    by_order = emission(made, len(COMPLETIONS), order=order).log_prob(COMPLETIONS.unsqueeze(1))
    permuted = emission(made, len(COMPLETIONS)).log_prob(COMPLETIONS[:, order].unsqueeze(1))
    assert torch.equal(by_order, permuted)
    assert not torch.allclose(by_order.exp(), probabilities(made))


@pytest.mark.parametrize("as_network", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@each_backend("nade_draw")
def test_draws_have_their_probabilities(backend: str, order: Tensor | None, as_network: bool) -> None:
    made, count = emitter(dtype=torch.float32), 40000
    torch.manual_seed(1)
    with ops.use_backend(backend):
        draws = emission(made, count, as_network, order=order).sample()
    found = (draws == COMPLETIONS.float().unsqueeze(1)[:, None]).all(-1).double().mean((-1, -2))
    expected = probabilities(emitter(), order)
    error = (found - expected).abs() / (expected * (1 - expected) / count).sqrt()
    assert error.max() < 4.0, found


def test_draws_have_all_shapes_and_end_with_their_rows() -> None:
    z = torch.randn(2, 3, 4, Z)
    lengths = torch.tensor([4, 0, 2])
    made = emitter(dtype=torch.float32)
    draws = NadeEmission(z, made.weights, lengths).sample((5,))
    assert draws.shape == (5, 2, 3, 4, D)
    assert draws.dtype == torch.float32
    assert draws[..., 1, :, :].count_nonzero() == draws[..., 2, 2:, :].count_nonzero() == 0
    assert draws.count_nonzero() > 0
    with pytest.raises(ValueError, match=r"^z: expected latents with probabilities by the emitter"):
        NadeEmission(torch.full_like(z, torch.nan), made.weights, lengths).sample()


@each_backend("nade_emission_log_prob")
@pytest.mark.parametrize("layout", ["sliced", "time_major"])
def test_gradients_equal_the_oracle(backend: str, layout: str) -> None:
    case = Case("nade", particles=(2,), lengths="ragged", mask="dims", poison="nan")
    inputs = build("nade_emission_log_prob", replace(case, layout=layout), torch.float64)
    with ops.use_backend(backend):
        got = gradients(ops.nade_emission_log_prob, inputs)
    expected = gradients(oracle.nade_emission_log_prob, inputs)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def gradients(function: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    wanted = {name: tensor.requires_grad_() for name, tensor in differentiable(inputs).items()}
    out = function(**inputs)
    along = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    found = torch.autograd.grad((along * out).sum(), list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


@each_backend("nade_emission_log_prob")
def test_features_need_not_be_binary(backend: str) -> None:
    """The gradient by x is the derivative of the formula, which is defined for any x."""
    case = Case("real", mask="dims", lengths="ragged")
    inputs = build("nade_emission_log_prob", case, torch.float64)
    inputs["x"] = inputs["x"] + torch.linspace(-0.5, 0.7, inputs["x"].numel()).view_as(inputs["x"])
    with ops.use_backend("reference"):
        expected = gradients(ops.nade_emission_log_prob, inputs)
    with ops.use_backend(backend):
        got = gradients(ops.nade_emission_log_prob, inputs)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def test_a_user_defined_module_has_the_same_density() -> None:
    made = emitter()
    changed = emitter()
    changed.relu.register_forward_hook(lambda *_: None)
    assert changed.what_changed() == "its relu has hooks"
    x = COMPLETIONS.unsqueeze(1)
    for network in (made, changed):
        as_network = emission(network, len(x), as_network=True).log_prob(x)
        torch.testing.assert_close(as_network, emission(made, len(x)).log_prob(x), rtol=1e-12, atol=1e-12)


def test_an_emitter_has_the_weights_of_its_layers_and_begins_like_a_linear_one() -> None:
    made = nn.NadeEmitter(88, 3, 4, 25)
    heads = (made.lin_hidden_to_input, made.lin_hidden_to_state)
    assert made.weights[4:] == (
        *(t for head in heads for t in (head.weight, head.bias)),
        made.read,
        made.write,
    )
    for parameter in (made.read, made.write):
        assert parameter.shape == (88, 25)
        assert 0.19 < parameter.abs().max() <= 0.2
        assert abs(parameter.mean()) < 0.02
    logits, state = made(torch.zeros(6, 2, 3))
    assert (logits.shape, state.shape) == ((6, 2, 88), (6, 2, 25))


def test_there_is_no_mean() -> None:
    made = emission(emitter(), 2)
    for name in ("mean", "variance", "stddev"):
        with pytest.raises(NotImplementedError, match=r"no closed form.+sample\(\(1000,\)\)\.mean\(0\)"):
            getattr(made, name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": torch.tensor([0, 0, 1])}, r"order: expected each number once, got \[0, 0, 1\]"),
        ({"order": torch.tensor([0, 1])}, r"order: expected int64 of shape \(3,\), got"),
        ({"order": torch.tensor([0, 1, 3])}, "order: expected values between 0 and 2, got 3"),
        ({"read": torch.zeros(D, U)}, "read: expected None where the emitter is given as weights"),
        ({"emitter": lambda z_t: (z_t, z_t)}, "read: expected a floating-point tensor, got None"),
    ],
)
def test_invalid_arguments_are_refused(changed: dict[str, Any], message: str) -> None:
    weights: NadeEmitterWeights = emitter(dtype=torch.float32).weights
    given = {"emitter": weights, "lengths": torch.ones(2, dtype=torch.int64), "output_dim": D}
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        NadeEmission(torch.zeros(2, 1, Z), **{**given, **changed})


def test_a_network_returns_a_pair_of_the_right_sizes() -> None:
    z, lengths, w = torch.zeros(2, 1, Z), torch.ones(2, dtype=torch.int64), torch.zeros(D, U)
    for network, message in (
        (lambda z_t: z_t, r"emitter: expected a pair \(logits, state\)"),
        (lambda z_t: (torch.zeros(2, 1, D), torch.zeros(2, 1, U - 1)), "state of emitter: expected a shape"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{message}"):
            NadeEmission(z, network, lengths, output_dim=D, read=w, write=w)
    with pytest.raises(ValueError, match=r"^write: expected shape \(3, 5\)"):
        NadeEmission(z, emitter(), lengths, output_dim=D, read=w, write=w[:, 1:])
