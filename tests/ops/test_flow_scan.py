"""The scan with flows: identity flows, clamped scales, NaN, empty rows and chunks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.reference import FlowWeights
from tests.cases import Case
from tests.compare import backends_for, compare, dtypes_for, each_backend, error, evaluate
from tests.device import DEVICE
from tests.inputs import Inputs, build

OP = "flow_scan"
CASE = Case("flows", B=5, T=6, Z=7, H=9, K=2, F=5, lengths="zeros", start="rows")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make even the smallest work use this many threads."""
    before, share = torch.get_num_threads(), getattr(torch.ops.dmm_fast, "_share_small_work", None)
    torch.set_num_threads(request.param)
    if share is not None:
        share(True)
    yield
    if share is not None:
        share(False)
    torch.set_num_threads(before)


def inputs_of(backend: str) -> Inputs:
    return build(OP, CASE, dtypes_for(OP, backend)[-1])


def constant_flows(weights: FlowWeights, **biases: float) -> FlowWeights:
    """Zero weights, except for the named biases, so that flows do not depend on their inputs."""
    return FlowWeights(
        *(
            torch.full_like(t, biases.get(name, 0.0))
            for name, t in zip(FlowWeights._fields, weights, strict=True)
        )
    )


def run(op_name: str, backend: str, inputs: Inputs, incoming: list[Tensor | None]) -> Any:
    with ops.use_backend(backend):
        return evaluate(getattr(ops, op_name), inputs, lambda outputs: incoming)


@pytest.mark.usefixtures("threads")
@each_backend(OP)
def test_identity_flows_equal_the_combiner_scan(backend: str) -> None:
    inputs = inputs_of(backend)
    flow_weights = constant_flows(inputs.pop("flow_weights"))
    incoming: list[Tensor | None] = [torch.randn_like(inputs["eps"]) for _ in range(3)]
    expected, expected_gradients = run("combiner_scan", backend, inputs, incoming)
    incoming.append(None)
    (*chain, log_det), gradients = run(OP, backend, {**inputs, "flow_weights": flow_weights}, incoming)
    assert log_det.count_nonzero() == 0
    most = TOLERANCE[inputs["eps"].dtype]
    assert all(error(value, right.double()) <= most for value, right in zip(chain, expected, strict=True))
    for name, right in expected_gradients.items():
        assert error(gradients[name], right.double()) <= most, name


@pytest.mark.usefixtures("threads")
@each_backend(OP)
@pytest.mark.parametrize(
    ("given", "clamped"), [(-7.0, -5.0), (-5.0, -5.0), (0.5, 0.5), (3.0, 3.0), (9.0, 3.0)]
)
def test_a_clamped_scale_is_used_and_passes_its_gradient(backend: str, given: float, clamped: float) -> None:
    inputs = inputs_of(backend)
    flow_weights = constant_flows(inputs["flow_weights"], b_log_scale=given)
    lengths = inputs["lengths"].to(inputs["eps"])
    incoming = [None, None, None, lengths.new_ones(CASE.B)]
    (*_, log_det), gradients = run(OP, backend, {**inputs, "flow_weights": flow_weights}, incoming)
    torch.testing.assert_close(log_det, lengths * (CASE.K * CASE.Z * clamped))
    by_bias = gradients["flow_weights.b_log_scale"]
    torch.testing.assert_close(by_bias, torch.full_like(by_bias, lengths.sum().item()))


@pytest.mark.usefixtures("threads")
@each_backend(OP)
@pytest.mark.parametrize("name", FlowWeights._fields)
def test_a_nan_in_any_weight_is_propagated_at_valid_steps(backend: str, name: str) -> None:
    inputs = inputs_of(backend)
    getattr(inputs["flow_weights"], name)[0].fill_(
        torch.nan
    )  # of the first flow, which the scales of the last one depend on
    with ops.use_backend(backend):
        z, *_, log_det = ops.flow_scan(**inputs)
    has_steps = inputs["lengths"] > 0
    assert bool(z[has_steps, 0].isnan().all())
    assert z[~has_steps].count_nonzero() == 0
    assert torch.equal(log_det.isnan(), has_steps)
    assert log_det[~has_steps].count_nonzero() == 0


@pytest.mark.usefixtures("threads")
@each_backend(OP)
def test_rows_without_a_step_are_zero_with_their_gradients(backend: str) -> None:
    inputs = inputs_of(backend)
    empty = inputs["lengths"] == 0
    assert 0 < int(empty.sum()) < CASE.B
    incoming: list[Tensor | None] = [torch.randn_like(inputs["eps"]) for _ in range(3)]
    incoming.append(torch.randn(CASE.B).to(inputs["eps"]))
    outputs, gradients = run(OP, backend, inputs, incoming)
    for result in (*outputs, *(gradients[name] for name in ("h", "eps", "z_q_0"))):
        assert result[empty].count_nonzero() == 0
        assert bool((result[~empty] != 0).flatten(1 if result.dim() > 1 else 0).any())


# A backward pass is computed in chunks; these cases have several, of one step and of more.
CHUNKED = [
    Case("many rows", B=130, T=3, Z=3, H=5, K=1, F=4, lengths="zeros"),
    Case("many chunks", B=9, T=40, Z=3, H=5, K=3, F=4, lengths="ragged", incoming="strided"),
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", [name for name in backends_for(OP) if name != "reference"])
def test_chunks_of_steps_add_up(backend: str, case: Case) -> None:
    compare(OP, case, backend, dtypes_for(OP, backend)[-1], DEVICE)
