"""Tests that need a GPU; skipped without one."""

from pathlib import Path

import pytest

from tests.device import gpu_only


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip every test of this folder without a GPU."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(gpu_only)
