"""Common state of all tests: one thread, Pyro's validation, a seed, an empty parameter store."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pyro
import pytest
import torch

from tests import device

# Workers share the cores; more threads than cores would delay small kernels.
torch.set_num_threads(1)

# A shell starts its background jobs with SIGINT ignored, and an ignored signal stays so; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples depend only on the source of the test, so runs are reproducible everywhere.
hypothesis.settings.register_profile(
    "dmm_fast", deadline=None, derandomize=True, database=None, max_examples=25
)
hypothesis.settings.load_profile("dmm_fast")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The device of the tests of the ops."""
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the ops are tested")


def pytest_configure(config: pytest.Config) -> None:
    """Set the device before any test module is imported."""
    device.use(config.getoption("--device"))


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Provide an empty parameter store, seed 0 and validation; restore torch's global modes."""
    device.leave_if_broken()
    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory with the polyphonic music files: ``DMM_FAST_DATA``, else ``../shared/data``."""
    named = os.environ.get("DMM_FAST_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        if named:
            pytest.fail(f"DMM_FAST_DATA: expected a directory, got {named!r}")
        pytest.skip(f"needs the music files: {path} is no directory; set DMM_FAST_DATA to one")
    return path
