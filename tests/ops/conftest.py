"""The instruction sets that this processor has beside the one in use."""

from collections.abc import Iterator

import pytest
import torch

from dmm_fast import native

WIDEST_FIRST = ("avx512", "avx2", "baseline")


def _narrower() -> tuple[str, ...]:
    widest = native.instruction_set()
    return () if widest is None else WIDEST_FIRST[WIDEST_FIRST.index(widest) + 1 :]


@pytest.fixture(params=_narrower())
def narrower(request: pytest.FixtureRequest) -> Iterator[str]:
    """The compiled ops on a narrower instruction set than they would take."""
    widest = native.instruction_set()
    torch.ops.dmm_fast._set_instruction_set(request.param)
    yield request.param
    torch.ops.dmm_fast._set_instruction_set(widest)
