"""Single launches compared with the many operators of torch that they replace, interpreted or on a GPU."""

import pytest
import torch
from torch import Tensor

from dmm_fast.triton import DEVICE as TRITON_DEVICE
from dmm_fast.triton import DTYPES
from tests.device import DEVICE

if DEVICE != TRITON_DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )

from dmm_fast.triton.elbo import gradients_of, loss_of
from dmm_fast.triton.observations import where_observed


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [1, 20, 300])
def test_an_elbo_and_its_gradients(B: int, dtype: torch.dtype) -> None:
    factor = torch.tensor(0.3, dtype=torch.float64, device=DEVICE)
    terms = [
        (randn(B).to(dtype), 1.0, 1),
        (randn(2, B).to(dtype), factor, 1),
        (randn(B).to(dtype).expand(3, B), 2.5, -1),
    ]
    loss, gradients = loss_of(terms), gradients_of(terms, 4)
    exact = sum(sign * (log_prob.double() * scale).sum() for log_prob, scale, sign in terms)
    assert (loss.dtype, loss.shape) == (torch.float64, ())
    torch.testing.assert_close(loss, -exact, rtol=1e-12, atol=1e-12)
    for gradient, (log_prob, scale, sign) in zip(gradients, terms, strict=True):
        assert (gradient.dtype, gradient.shape) == (dtype, log_prob.shape)
        # The interpreter truncates where the GPU rounds.
        right = torch.full_like(gradient, -sign * float(scale) / 4)
        torch.testing.assert_close(gradient, right, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int64, None])
@pytest.mark.parametrize("by_feature", [False, True])
def test_unobserved_entries_are_zero(kind: torch.dtype | None, by_feature: bool) -> None:
    B, T, D = 5, 37, 11
    x = randn(B, D, T).mT  # strided
    lengths = torch.tensor([37, 0, 1, 20, 36], device=DEVICE)
    mask = None if kind is None else (randn(B, T, D) > 0).to(kind)
    if mask is not None and not by_feature:
        mask = mask[..., 0]
    valid = (torch.arange(T, device=DEVICE) < lengths[:, None])[..., None].expand(B, T, D)
    observed = valid if mask is None else valid & (mask if by_feature else mask[..., None]).bool()
    x = torch.where(observed, x, float("nan")).mT.contiguous().mT
    got, bools = where_observed(x, lengths, mask)
    assert torch.equal(got, torch.where(observed, x, 0.0))
    if mask is None:
        assert bools is None
    else:
        assert bools is not None
        assert torch.equal(bools, mask.bool())
