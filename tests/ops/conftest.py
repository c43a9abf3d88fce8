"""Fixtures for the tests of the ops: instruction sets, a clean choice of backend, an op to choose for."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dmm_fast import _extension, ops
from dmm_fast.ops import _backends

WIDEST_FIRST = ("avx512", "avx2", "baseline")


def _narrower() -> tuple[str, ...]:
    widest = _extension.instruction_set()
    return () if widest is None else WIDEST_FIRST[WIDEST_FIRST.index(widest) + 1 :]


@pytest.fixture(params=_narrower())
def narrower(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled ops on a narrower instruction set than they would take."""
    widest = _extension.instruction_set()
    torch.ops.dmm_fast._set_instruction_set(request.param)
    yield request.param
    torch.ops.dmm_fast._set_instruction_set(widest)


@pytest.fixture
def no_request() -> Iterator[None]:
    """No backend is chosen before or after the test."""
    ops.use_backend(None)
    yield
    ops.use_backend(None)


@pytest.fixture
def double_op(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """An op that only the reference has, and that says what it was computed by."""
    monkeypatch.setattr(_backends, "_implementations", {})
    _backends.register("double", "reference", lambda x: 2 * x)
    return lambda x: _backends.implementation("double", x)(x)
