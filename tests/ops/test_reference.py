"""The reference compared with the oracle, which computes plain loops over particles, rows and steps."""

import pytest
import torch

from dmm_fast.ops.schema import OPS
from tests import oracle
from tests.cases import CASES
from tests.compare import differentiated, eager, error, results
from tests.device import cpu_only
from tests.inputs import build

pytestmark = cpu_only


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("op_name", OPS)
def test_values_and_gradients_equal_the_oracle(op_name: str, case_name: str) -> None:
    case = CASES[case_name]
    inputs = build(op_name, case, torch.float64)
    truth = results(getattr(oracle, op_name), case, inputs, differentiated(op_name))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = eager(op_name, case, dtype)
        assert {name: value.shape for name, value in got.items()} == {
            name: value.shape for name, value in truth.items()
        }
        assert {value.dtype for value in got.values()} == {dtype}
        off = {name: error(got[name], truth[name]) for name in truth}
        assert {name: e for name, e in off.items() if not e <= bound} == {}
