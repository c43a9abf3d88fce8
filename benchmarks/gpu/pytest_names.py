"""A plugin of pytest: tests find the kernels that other processes have compiled."""

from benchmarks.gpu.triton_cache import same_names


def pytest_configure() -> None:
    """Before the first test."""
    same_names()
