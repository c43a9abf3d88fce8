"""Fixtures that configure runs of the kernels under the emulator."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the order of threads and injected faults: the arguments of the emulator's ``Options``."""
    emulator, emulated = import_module("dmm_emulator"), import_module("tests.emulated")

    def choose(**given: Any) -> None:
        monkeypatch.setattr(emulated, "options", emulator.Options(**given))

    return choose
