"""Layers over all steps, interpreted, compared with torch in float64."""

import pytest
import torch

from dmm_fast import triton
from dmm_fast.ops import _scan_gemms

if not triton.INTERPRETED:
    pytest.skip("runs where Triton's kernels are interpreted: make triton", allow_module_level=True)

from dmm_fast.reference import CombinerWeights
from dmm_fast.triton.step_layers import step_layers

P, B, T, Z, H = 2, 3, 5, 7, 36
LENGTHS = torch.tensor([5, 0, 3])
VALID = (torch.arange(T) < LENGTHS[:, None])[..., None]


def test_layers_are_concatenated_and_zero_past_the_ends() -> None:
    h, w_loc, b_loc, w_scale, b_scale = (torch.randn(s) for s in [(P, B, T, H), (Z, H), (Z,), (Z, H), (Z,)])
    h = torch.where(VALID, h, float("nan"))
    got = step_layers(h, [(w_loc, b_loc), (w_scale, b_scale)], LENGTHS, scale=0.5)
    weights = CombinerWeights(w_scale, b_scale, w_loc, b_loc, w_scale, b_scale)  # the first two are not read
    exact = _scan_gemms.heads_of_hidden(h.double(), CombinerWeights(*(w.double() for w in weights)))
    torch.testing.assert_close(got.double(), torch.where(VALID, exact, 0.0), atol=1e-5, rtol=1e-5)
