"""Flows: weights, inverse, draws that keep their noise, and flows without an op."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineAutoregressive, Planar, affine_autoregressive
from pyro.infer import Trace_ELBO
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from dmm_fast import DMM, _flows
from dmm_fast.distributions import FlowedNormal
from dmm_fast.infer import SequenceELBO
from dmm_fast.nn import NotFusedWarning
from dmm_fast.reference import affine_flows
from tests.device import cpu_only
from tests.helpers_model import (
    FLOWS,
    assert_close,
    assert_same_step,
    loss_and_grads,
    make_batch,
    small_dmm,
    stir,
)

pytestmark = cpu_only

DOUBLE = torch.float64


def flows(K: int = 2, Z: int = 4, F: int = 7, dtype: torch.dtype = DOUBLE) -> list[AffineAutoregressive]:
    torch.manual_seed(0)
    return [stir(affine_autoregressive(Z, hidden_dims=[F])).to(dtype) for _ in range(K)]


@pytest.mark.parametrize(("K", "Z", "F"), [(1, 1, 1), (1, 4, 4), (2, 4, 7), (4, 3, 20)])
@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1")
def test_weights_compute_what_pyro_does(K: int, Z: int, F: int) -> None:
    made, x = flows(K, Z, F), torch.randn(5, 3, Z, dtype=DOUBLE)
    assert _flows.why_no_weights(made) is None
    y, log_det = affine_flows(x, _flows.weights_of(made))
    expected, expected_log_det = _flows.apply(made, x, None)
    assert_close(y, expected, 1e-14)
    assert_close(log_det, expected_log_det, 1e-14)
    assert_close(y, dist.transforms.ComposeTransformModule(made)(x), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_inverse_is_exact_in_any_dtype(dtype: torch.dtype) -> None:
    """Pyro's inverse starts from zeros of the default dtype, here float32."""
    made, x = flows(dtype=dtype), torch.randn(5, 3, 4, dtype=dtype)
    y, log_det = _flows.apply(made, x, None)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    back, log_det_back = _flows.invert(made, y)
    assert_close(back, x, tolerance)
    assert_close(log_det_back, log_det, tolerance)
    if dtype == torch.float32:
        assert_close(back, made[0].inv(made[1].inv(y)), tolerance)


def test_gradients_of_the_inverse_equal_numerical_ones() -> None:
    made = flows(K=1)
    y = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)
    parameters = list(made[0].parameters())

    def inverse(*_: Tensor) -> tuple[Tensor, Tensor]:
        return _flows.invert(made, y)

    assert torch.autograd.gradcheck(inverse, (y, *parameters))


def test_clamped_scales_invert() -> None:
    made = flows(K=1)
    with torch.no_grad():
        made[0].arn.layers[1].bias[4:] += 10.0 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=DOUBLE)
    x = torch.randn(5, 4, dtype=DOUBLE)
    y, log_det = affine_flows(x, _flows.weights_of(made))
    assert bool((log_det == 3.0 - 5.0 + 3.0 - 5.0).all())
    assert_close(_flows.invert(made, y)[0], x, 1e-12)


# --- flows that no op computes ------------------------------------------------------------------------------


def with_tanh(Z: int) -> AffineAutoregressive:
    return AffineAutoregressive(AutoRegressiveNN(Z, [8], nonlinearity=nn.Tanh()))


class Louder(AffineAutoregressive):  # type: ignore[misc]
    """A user-defined flow."""

    def _call(self, x: Tensor) -> Tensor:
        mean, log_scale = self.arn(x)
        self._cached_log_scale = log_scale + 0.5
        return torch.exp(log_scale + 0.5) * x + mean

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError


OTHERS: dict[str, tuple[Callable[[int], Any], str]] = {
    "tanh": (with_tanh, "another nonlinearity"),
    "two layers": (lambda Z: affine_autoregressive(Z, hidden_dims=[8, 8]), "other layers than two"),
    "skips": (lambda Z: AffineAutoregressive(AutoRegressiveNN(Z, [8], skip_connections=True)), "skips"),
    "stable": (lambda Z: affine_autoregressive(Z, hidden_dims=[8], stable=True), "functions of its own"),
    "range": (lambda Z: affine_autoregressive(Z, hidden_dims=[8], log_scale_max_clip=2.0), "range of scales"),
    "planar": (Planar, "one is a Planar"),
    "own": (lambda Z: Louder(AutoRegressiveNN(Z, [8])), "one is a Louder"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_flows_run_by_their_own_functions(kind: str) -> None:
    make, why = OTHERS[kind]
    assert why in str(_flows.why_no_weights([make(3)]))
    results = []
    for per_step_sites in (False, True):
        dmm = small_dmm(dtype=DOUBLE, **FLOWS)
        torch.manual_seed(4)
        dmm.iafs = [dmm.iafs[0], stir(make(3)).double()]
        dmm.iafs_modules = nn.ModuleList(dmm.iafs)
        dmm.per_step_sites = per_step_sites
        if per_step_sites:
            results.append(loss_and_grads(dmm, make_batch(dtype=DOUBLE), Trace_ELBO()))
        else:
            with pytest.warns(NotFusedWarning, match=r"^iafs is computed by its own forward"):
                results.append(loss_and_grads(dmm, make_batch(dtype=DOUBLE), Trace_ELBO()))
    assert_same_step(results[0], results[1], 1e-10)


def test_flows_of_different_widths_and_hooked_ones_are_not_fused() -> None:
    one, other = flows(K=1, F=5)[0], flows(K=1, F=6)[0]
    assert "different numbers of hidden units" in str(_flows.why_no_weights([one, other]))
    one.arn.layers[0].register_forward_hook(lambda module, given, made: made)
    assert "hooks" in str(_flows.why_no_weights([one]))


def test_a_frozen_flow_has_no_gradient_and_the_others_do() -> None:
    dmm = small_dmm(dtype=DOUBLE, **FLOWS)
    dmm.iafs[0].requires_grad_(False)
    _, grads = loss_and_grads(dmm, make_batch(dtype=DOUBLE), SequenceELBO(Trace_ELBO()))
    assert {grads[name] is None for name in grads if name.startswith("iafs_modules.0.")} == {True}
    assert {grads[name] is None for name in grads if name.startswith("iafs_modules.1.")} == {False}


# --- draws that know their noise ----------------------------------------------------------------------------


def no_inverse(*_: Any) -> Any:
    raise AssertionError("expected no inverse")


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("inference", ["st-r", "mf-lr"])
def test_a_training_step_needs_no_inverse(inference: str, per_step_sites: bool) -> None:
    dmm = small_dmm(inference=inference, per_step_sites=per_step_sites, **FLOWS)
    with (
        patch.object(_flows, "invert", no_inverse),
        patch.object(AffineAutoregressive, "_inverse", no_inverse),
    ):
        loss, _ = loss_and_grads(dmm, make_batch(), Trace_ELBO())
        vectorized = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        loss_and_grads(dmm, make_batch(), vectorized)
    assert loss == loss


def flowed(dmm: DMM) -> tuple[FlowedNormal, dist.TransformedDistribution]:
    torch.manual_seed(1)
    loc, scale = torch.randn(4, 3, dtype=DOUBLE), torch.rand(4, 3, dtype=DOUBLE) + 0.1
    return FlowedNormal(loc, scale, dmm.iafs), dist.TransformedDistribution(dist.Normal(loc, scale), dmm.iafs)


def test_flowed_normal_is_pyros_transformed_distribution() -> None:
    torch.set_default_dtype(DOUBLE)
    ours, theirs = flowed(small_dmm(dtype=DOUBLE, **FLOWS))
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    for shape in ((), (5,)):
        torch.manual_seed(2)
        z = ours.rsample(shape)
        torch.manual_seed(2)
        assert_close(z, theirs.rsample(shape), 1e-14)
        assert_close(ours.log_prob(z), theirs.log_prob(z), 1e-12)
        assert_close(ours.log_prob(z.clone()), theirs.log_prob(z.clone()), 1e-12)
    wide = ours.expand((6, 4))
    assert (wide.batch_shape, wide.event_shape, wide.rsample().shape) == ((6, 4), (3,), (6, 4, 3))
    assert_close(wide.log_prob(z[0].expand(6, 4, 3)), theirs.log_prob(z[0]).expand(6, 4), 1e-12)


def test_the_density_of_a_sample_has_a_gradient() -> None:
    dmm = small_dmm(dtype=DOUBLE, **FLOWS)
    z = flowed(dmm)[0].sample()
    assert not z.requires_grad
    assert flowed(dmm)[0].log_prob(z).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(3)}, r"^scale: expected"),
        ({"flows": 3}, r"^flows: expected list or tuple, got int"),
        ({"flows": [nn.Tanh()]}, r"^flows\[0\]: expected Transform, got Tanh"),
        ({"weights": []}, r"^weights: expected FlowWeights or NoneType"),
        ({"loc": [1.0]}, r"^loc: expected"),
    ],
)
def test_wrong_arguments_of_a_flowed_normal(change: dict[str, Any], message: str) -> None:
    given = {"loc": torch.zeros(2, 3), "scale": torch.ones(2, 3), "flows": [], **change}
    with pytest.raises((ValueError, TypeError), match=message):
        FlowedNormal(**given)
