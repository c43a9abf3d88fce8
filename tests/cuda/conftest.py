"""Runs of the kernels under the emulator, as the tests want them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Choose how threads take turns and what goes wrong: the arguments of the emulator's ``Options``."""
    emulator, emulated = import_module("dmm_emulator"), import_module("tests.emulated")

    def choose(**given: Any) -> None:
        monkeypatch.setattr(emulated, "options", emulator.Options(**given))

    return choose
