"""Fixtures for the tests of the ops: instruction sets, the choice of a backend, and an op for it."""

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
    """The compiled ops on a narrower instruction set than the default."""
    widest = _extension.instruction_set()
    torch.ops.dmm_fast._set_instruction_set(request.param)
    yield request.param
    torch.ops.dmm_fast._set_instruction_set(widest)


@pytest.fixture
def no_request() -> Iterator[None]:
    """Reset the choice of backends before and after the test."""
    ops.use_backend(None)
    yield
    ops.use_backend(None)


@pytest.fixture
def double_op(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """An op that only the reference has, whose result shows which backend computed it."""
    monkeypatch.setattr(_backends, "_implementations", {})
    _backends.register("double", "reference", lambda x: 2 * x)
    return lambda x: _backends.implementation("double", x)(x)
