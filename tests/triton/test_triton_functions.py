"""The kernels' elementary functions compared with float64 over the range of float32."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm_fast.triton import DEVICE as TRITON_DEVICE
from tests.device import DEVICE

if DEVICE != TRITON_DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

EPS = torch.finfo(torch.float32).eps

Array = NDArray[np.float32]


def off_by_two_units(x: NDArray[np.float64]) -> Array:
    """Add or subtract two units in the last place, varying from number to number."""
    near = x.astype(np.float32)
    more = near.view(np.int32) % 3 > 0
    return (x * np.where(more, 1.0 + 2.0**-22, 1.0 - 2.0**-22)).astype(np.float32)


def without_subnormal(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0.0), x)


def exp2_on_a_gpu(x: Array) -> Array:
    """``ex2.approx.ftz.f32`` with the largest error that PTX allows."""
    return without_subnormal(off_by_two_units(np.exp2(without_subnormal(x).astype(np.float64))))


def exp_on_a_gpu(x: Array) -> Array:
    """``tl.exp`` as compiled by Triton: the argument is scaled and rounded, then ``ex2.approx.f32``."""
    return off_by_two_units(np.exp2((x * np.float32(np.log2(np.e))).astype(np.float64)))


def quotient_on_a_gpu(x: Array, y: Array) -> Array:
    """``div.full.f32`` with the largest error that PTX allows."""
    return off_by_two_units(x.astype(np.float64) / y.astype(np.float64))


@pytest.fixture(params=["exact", "as on a GPU"], autouse=True)
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The bound: one eps with numpy's functions, three with the largest errors allowed on a GPU."""
    if request.param == "exact":
        return EPS
    builder = InterpreterBuilder
    monkeypatch.setattr(builder, "create_exp", lambda self, x: self.unary_op(x, exp_on_a_gpu))
    monkeypatch.setattr(builder, "create_exp2", lambda self, x: self.unary_op(x, exp2_on_a_gpu))
    monkeypatch.setattr(builder, "create_fdiv", lambda self, x, y: self.binary_op(x, y, quotient_on_a_gpu))
    return 3 * EPS


@triton.jit
def apply_kernel(x, out, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, FUNCTION(tl.load(x + i, mask=i < size, other=0.0)), mask=i < size)


def apply(name: str, x: Tensor) -> Tensor:
    """A kernel that applies the function elementwise."""
    module = import_module(f"dmm_fast.triton.{'densities' if name.endswith('slope') else 'common'}")
    x = x.to(DEVICE)
    out = torch.full_like(x, float("nan"))
    apply_kernel[(triton.cdiv(len(x), 1 << 14),)](x, out, len(x), getattr(module, name), BLOCK=1 << 14)
    return out.cpu()


def everywhere(least: float, most: float) -> Tensor:
    """Numbers between two limits, spaced linearly and, down to the smallest of float32, logarithmically."""
    size = torch.logspace(-37, 4.5, 20001, dtype=torch.float64)
    x = torch.cat([torch.linspace(-110.0, 110.0, 20001, dtype=torch.float64), size, -size, torch.zeros(1)])
    return x[(x >= least) & (x <= most)].float()


def log_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -30, x - 0.5 * x.exp(), x.exp().log1p().log()).where(x < 500, x.log())


def softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + torch.log1p((-x.abs()).exp())


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "exp": (torch.exp, -80.0, 88.7),
    "softplus": (softplus, -80.0, 1e4),
    "sigmoid": (torch.sigmoid, -80.0, 1e4),
    "tanh": (torch.tanh, -1e4, 1e4),
    "expm1": (torch.expm1, -1e4, 80.0),
    "log_softplus_slope": (lambda x: torch.sigmoid(x) / softplus(x), -80.0, 1e4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_exact_to_a_few_units_in_the_last_place(name: str, unit: float) -> None:
    exact, least, most = FUNCTIONS[name]
    x = everywhere(least, most)
    expected = exact(x.double())
    off = (apply(name, x).double() - expected).abs() / expected.abs().clamp_min(1e-37)
    assert off.max() <= 6 * unit, (x[off.argmax()].item(), off.max().item() / EPS)


def test_log_softplus_is_exact_relative_to_one(unit: float) -> None:
    x = everywhere(-1e4, 1e4)
    expected = log_softplus(x.double())
    off = (apply("log_softplus", x).double() - expected).abs() / expected.abs().clamp_min(1.0)
    assert off.max() <= 4 * unit, (x[off.argmax()].item(), off.max().item() / EPS)


def test_exp_of_denormal_and_overflowing_results() -> None:
    x = torch.tensor([-1e30, -104.0, -95.0, 88.8, 1e30, -float("inf"), float("inf")])
    expected = x.double().exp().float()
    torch.testing.assert_close(apply("exp", x), expected, rtol=0, atol=torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize("name", ["log_softplus", *FUNCTIONS])
def test_nan_stays_nan(name: str) -> None:
    assert apply(name, torch.tensor([float("nan")])).isnan().all()


def test_log_1_plus_is_accurate_near_zero(unit: float) -> None:
    u = torch.cat([torch.logspace(-37, 0, 20001), torch.zeros(1)])
    expected: Any = u.double().log1p()
    off = (apply("log_1_plus", u).double() - expected).abs() / expected.clamp_min(1e-37)
    assert off.max() <= 4 * unit
