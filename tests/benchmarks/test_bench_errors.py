"""Errors of single ops are measured correctly, and exceed the bound for a wrong op."""

from dataclasses import replace

import pytest
import torch

from benchmarks import draws, errors
from benchmarks.draws import Sizes, map_tensors, to_double
from benchmarks.errors import QUICK
from dmm_fast import _extension, ops, reference
from dmm_fast.ops import _backends
from dmm_fast.ops.schema import OPS

ALL = sorted(ops.info()["ops"])


@pytest.fixture
def wrong_backend(monkeypatch):
    """A function that registers an implementation of an op as the backend "triton"."""

    def register(op, compute):
        held = {**_backends._implementations[op], "triton": _backends.Implementation(compute, None)}
        monkeypatch.setitem(_backends._implementations, op, held)
        monkeypatch.setitem(_backends.PREFERENCE, "cpu", ("cpp", "triton", "reference"))

    return register


@pytest.mark.parametrize("op", ALL)
def test_eager_measured_against_itself(op):
    rows = list(errors.op_rows(op, "reference", "cpu", QUICK))
    assert all(row.ok for row in rows)
    assert all(row.max_rel_error == row.eager_rel_error for row in rows)
    # errors of float32 are positive, except for draws of zeros and ones, which are exact
    assert op == "nade_draw" or max(row.eager_rel_error for row in rows) > 1e-9
    cases = {row.case for row in rows}
    ragged = "lengths" in getattr(OPS.get(op), "inputs", ())
    assert cases == {"B=3, T=5, full", "B=3, T=5, ragged"} if ragged else {"B=3, T=5, full"}


def test_every_floating_point_argument_has_a_gradient():
    names = {row.op for row in errors.op_rows("emission_log_prob", "reference", "cpu", QUICK)}
    weights = {f"weights.{field}" for field in reference.EmitterWeights._fields}
    want = {"value"} | {f"gradient of {name}" for name in {"x", "z", *weights}}
    assert names == {f"emission_log_prob: {name}" for name in want}


@pytest.mark.skipif("cpp" not in _backends._implementations["rnn_scan"], reason="no C++ ops were built")
def test_all_compiled_ops_are_measured_and_within_their_bounds():
    rows = errors.measure("cpp", sizes=QUICK)
    assert {row.op.partition(": ")[0] for row in rows} == set(ALL)
    assert [row for row in rows if not row.ok] == []
    # The order of summation differs from eager PyTorch, so all errors would be equal if that were measured.
    assert any(row.max_rel_error != row.eager_rel_error for row in rows)


class SlightlyOff(torch.autograd.Function):
    """The identity, with a gradient that is too large by 1e-5."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return dx * (1 + 1e-5)


def test_a_wrong_gradient_exceeds_its_bound(wrong_backend):
    def off(x_proj, w_hh, *given):
        return reference.rnn_scan(x_proj, SlightlyOff.apply(w_hh), *given)

    wrong_backend("rnn_scan", off)
    rows = errors.measure("triton", sizes=QUICK)
    red = {row.op for row in rows if not row.ok}
    assert red == {"rnn_scan: gradient of w_hh"}
    assert {row.backend for row in rows} == {"triton"}
    assert [row.max_rel_error for row in rows if not row.ok] == pytest.approx([1e-5, 1e-5], rel=0.1)


def test_a_wrong_value_exceeds_its_bound(wrong_backend):
    def off(value, loc, scale, lengths, mask=None):
        return reference.normal_log_prob(value, loc, scale, lengths, mask) * (1 + 1e-5)

    wrong_backend("normal_log_prob", off)
    red = {row.op for row in errors.measure("triton", sizes=QUICK) if not row.ok}
    assert "normal_log_prob: value" in red


def test_a_wrong_step_of_the_optimizer_exceeds_its_bound(wrong_backend):
    def off(*lists, **options):
        reference.clipped_adam(*lists, **{**options, "weight_decay": 0.0})

    wrong_backend("clipped_adam", off)
    red = {row.op for row in errors.measure("triton", sizes=QUICK) if not row.ok}
    assert red == {f"clipped_adam: value of {name}" for name in ("params", "exp_avgs", "exp_avg_sqs")}


def test_a_backend_without_ops_here_has_no_rows():
    assert errors.measure("cuda", sizes=QUICK) == []


def test_errors_are_norm_wise_and_infinite_for_nan():
    truth = {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.zeros(2).double()}
    near = {"a": torch.tensor([3.0, 4.5]), "b": torch.zeros(2)}
    assert errors.relative_errors(near, truth) == {"a": pytest.approx(0.1), "b": 0.0}
    off = {"a": torch.tensor([torch.nan, 4.0]), "b": torch.tensor([0.0, 1e-30])}
    assert errors.relative_errors(off, truth) == {"a": torch.inf, "b": torch.inf}


def test_a_bound_is_three_times_the_error_of_eager_and_at_least_eight_eps():
    eps = torch.finfo(torch.float32).eps
    floor = 8 * eps * (2 if _extension.instruction_set() == "baseline" else 1)
    assert errors.bound(1e-3) == pytest.approx(3e-3)
    assert errors.bound(eps) == errors.bound(torch.inf) == floor
    assert errors.bound(0.0, torch.bfloat16) == floor / eps * torch.finfo(torch.bfloat16).eps


def test_inputs_of_relus_are_not_near_zero():
    for seed in range(5):
        inputs = errors.arguments_off_kinks("rnn_scan", Sizes(B=20, T=20, H=50), seed)
        doubles = map_tensors(inputs, to_double)
        h = reference.rnn_scan(**doubles)
        later = torch.cat([h[:, 1:], doubles["h_0"].expand(20, 1, -1)], dim=1)
        before_relu = doubles["x_proj"] + later @ doubles["w_hh"].T
        assert before_relu.abs().min() > errors.RELU_MARGIN


def test_only_draws_with_relu_inputs_near_zero_are_an_error(monkeypatch):
    monkeypatch.setattr(errors, "RELU_MARGIN", 10.0)
    monkeypatch.setattr(draws, "MAX_DRAWS", 3)
    with pytest.raises(RuntimeError, match="emitter: expected a draw without a ReLU input near zero in 3"):
        errors.arguments_off_kinks("emitter", QUICK, 0)


def test_ragged_lengths_go_from_all_steps_to_one():
    assert replace(QUICK, lengths="ragged").row_lengths() == [1, 3, 5]
    assert QUICK.row_lengths() == [5, 5, 5]


def test_arguments_are_on_the_given_device():
    for device in ("cpu", "meta"):
        drawn = errors.arguments_off_kinks("clipped_adam", QUICK, 0, device)
        assert {tensor.device.type for tensors in drawn.values() for tensor in tensors} == {device}
