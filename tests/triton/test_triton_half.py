"""bfloat16 and float16: float32 arithmetic between rounded ends."""

import pytest
import torch

from dmm_fast.ops.schema import OPS
from dmm_fast.triton import DEVICE as TRITON_DEVICE
from tests.cases import CASES
from tests.compare import backends_for, error, run_backend
from tests.device import DEVICE
from tests.inputs import build, map_tensors

if DEVICE != TRITON_DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("op_name", [op for op in OPS if "triton" in backends_for(op)])
def test_half_precision_rounds_only_inputs_and_outputs(op_name: str, dtype: torch.dtype) -> None:
    case = CASES["empty_rows"]
    rounded = build(op_name, case, dtype)
    same = map_tensors(rounded, lambda name, t: t.float() if t.is_floating_point() else t)
    half = run_backend(op_name, rounded, case, "triton")
    for name, expected in run_backend(op_name, same, case, "triton").items():
        assert half[name].dtype == dtype, name
        # Twice the bound, as the incoming gradients are rounded as well.
        assert error(half[name], expected.double()) <= 2 * torch.finfo(dtype).eps, name
