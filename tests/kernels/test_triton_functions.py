"""The kernels' elementary functions against float64 over the whole range of float32."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import kernels
from tests.device import DEVICE

if DEVICE != kernels.DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )

import triton
import triton.language as tl

EPS = torch.finfo(torch.float32).eps


@triton.jit
def apply_kernel(x, out, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, FUNCTION(tl.load(x + i, mask=i < size, other=0.0)), mask=i < size)


def apply(name: str, x: Tensor) -> Tensor:
    """The function of that name, elementwise."""
    module = import_module(f"dmm_fast.kernels.{'densities' if name.endswith('slope') else 'common'}")
    x = x.to(DEVICE)
    out = torch.full_like(x, float("nan"))
    apply_kernel[(triton.cdiv(len(x), 1 << 14),)](x, out, len(x), getattr(module, name), BLOCK=1 << 14)
    return out.cpu()


def everywhere(least: float, most: float) -> Tensor:
    """Numbers between the two: evenly, and by magnitude down to the least that float32 knows."""
    size = torch.logspace(-37, 4.5, 20001, dtype=torch.float64)
    x = torch.cat([torch.linspace(-110.0, 110.0, 20001, dtype=torch.float64), size, -size, torch.zeros(1)])
    return x[(x >= least) & (x <= most)].float()


def log_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -30, x - 0.5 * x.exp(), x.exp().log1p().log()).where(x < 500, x.log())


def softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + torch.log1p((-x.abs()).exp())


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "softplus": (softplus, -80.0, 1e4),
    "sigmoid": (torch.sigmoid, -80.0, 1e4),
    "tanh": (torch.tanh, -1e4, 1e4),
    "expm1": (torch.expm1, -1e4, 80.0),
    "log_softplus_slope": (lambda x: torch.sigmoid(x) / softplus(x), -80.0, 1e4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_exact_to_a_few_units_in_the_last_place(name: str) -> None:
    exact, least, most = FUNCTIONS[name]
    x = everywhere(least, most)
    expected = exact(x.double())
    off = (apply(name, x).double() - expected).abs() / expected.abs().clamp_min(1e-37)
    assert off.max() <= 6 * EPS, (x[off.argmax()].item(), off.max().item() / EPS)


def test_log_softplus_is_exact_relative_to_one() -> None:
    x = everywhere(-1e4, 1e4)
    expected = log_softplus(x.double())
    off = (apply("log_softplus", x).double() - expected).abs() / expected.abs().clamp_min(1.0)
    assert off.max() <= 4 * EPS, (x[off.argmax()].item(), off.max().item() / EPS)


@pytest.mark.parametrize("name", ["log_softplus", *FUNCTIONS])
def test_nan_stays_nan(name: str) -> None:
    assert apply(name, torch.tensor([float("nan")])).isnan().all()


def test_log_1_plus_keeps_what_rounding_would_lose() -> None:
    u = torch.cat([torch.logspace(-37, 0, 20001), torch.zeros(1)])
    expected: Any = u.double().log1p()
    off = (apply("log_1_plus", u).double() - expected).abs() / expected.clamp_min(1e-37)
    assert off.max() <= 4 * EPS
