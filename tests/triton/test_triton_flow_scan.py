"""Flows whose log-scales are clamped, and NaN within a chain: interpreted or on a GPU."""

import pytest
import torch

from dmm_fast import ops, reference
from dmm_fast.reference import FLOW_LOG_SCALES
from dmm_fast.triton import DEVICE as TRITON_DEVICE
from tests.cases import Case
from tests.compare import error, results, run_backend
from tests.device import DEVICE
from tests.inputs import Inputs, build

if DEVICE != TRITON_DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )

CASE = Case("flows", B=3, T=3, Z=5, H=6, K=4, F=7, lengths="zeros", poison="nan")


def inputs_with(b_log_scale: list[float], dtype: torch.dtype, device: str) -> Inputs:
    """Build the case with these biases of the first flow's log-scales."""
    inputs = build("flow_scan", CASE, dtype, device)
    b = inputs["flow_weights"].b_log_scale.clone()
    b[0] = torch.tensor(b_log_scale)
    return inputs | {"flow_weights": inputs["flow_weights"]._replace(b_log_scale=b)}


def test_gradients_pass_the_clamp_of_a_log_scale_unchanged() -> None:
    least, most = FLOW_LOG_SCALES
    given = [least - 4.0, least + 4.0, 0.0, most - 2.0, most + 2.0]
    got = run_backend("flow_scan", inputs_with(given, torch.float32, DEVICE), CASE, "triton")
    truth = results(reference.flow_scan, CASE, inputs_with(given, torch.float64, "cpu"))
    assert got.keys() == truth.keys()
    for name, exact in truth.items():
        assert error(got[name], exact) <= 2e-6, name


def test_nan_in_a_log_scale_is_in_the_results() -> None:
    inputs = inputs_with([0.0, float("nan"), 0.0, 0.0, 0.0], torch.float32, DEVICE)
    with ops.use_backend("triton"):
        z, _, _, log_det = ops.flow_scan(**inputs)
    lengths = inputs["lengths"]
    assert torch.equal(log_det.isnan(), lengths > 0)
    assert bool(z[:, 0, 1].isnan().eq(lengths > 0).all())


def test_nan_of_a_step_is_in_all_later_steps_of_its_row_alone() -> None:
    inputs = build("flow_scan", CASE)
    row = int(inputs["lengths"].argmax())
    inputs["eps"] = inputs["eps"].clone()
    inputs["eps"][row, 1] = float("nan")
    with ops.use_backend("triton"):
        z, loc, _, log_det = ops.flow_scan(**inputs)
    assert bool(z[row, 1 : inputs["lengths"][row]].isnan().all())
    assert bool(loc[row, 2 : inputs["lengths"][row]].isnan().all())
    others = torch.arange(CASE.B, device=DEVICE) != row
    assert not bool(z[others].isnan().any())
    assert torch.equal(log_det.isnan(), ~others)
