"""Public functions refuse invalid arguments with errors of this package, or return finite results.

Thousands of calls with one or two wrong arguments, drawn from a seed: see ``tests/bad_input``, which also
runs as ``python -m tests.bad_input --tries 20000``.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bad_input.arguments import files
from tests.bad_input.calls import Call, public_calls
from tests.bad_input.judge import judge
from tests.bad_input.tries import bounds, find

TRIES = 5000

CALLS, UNCOVERED = public_calls()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    files()


def test_every_public_function_is_covered() -> None:
    assert UNCOVERED == [], "give their arguments in tests/bad_input/arguments.py"


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
def test_valid_arguments_are_accepted() -> None:
    # The arguments that the other tests change.
    for call in CALLS:
        call(call.arguments())


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_invalid_arguments_are_refused(call: Call) -> None:
    with bounds():
        assert list(find(call, TRIES // len(CALLS))) == []


def raises(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        AttributeError("x: expected a, got b"),
        RecursionError("x: expected a, got b"),
        MemoryError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("x"),
        ValueError("x: expected a, got b"),
    ],
)
def test_raw_errors_are_faults(error: Exception) -> None:
    # The last one has the right text, but is raised outside the package.
    fault = judge(raises(error), may_be_infinite=False)
    assert fault is not None
    assert fault.kind == type(error).__name__


def test_answers_that_are_not_finite_are_faults() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert judge(lambda: (1, [nan]), may_be_infinite=False) is not None
    assert judge(lambda: (1, [nan]), may_be_infinite=True) is None
    assert judge(lambda: (1, [nan[:1]]), may_be_infinite=False) is None
