"""The device type of the tests of the ops, set by ``pytest --device cuda``.

Set before a test module is imported, so that what is parametrized by backends asks for those of the device.
"""

import os

import pytest
import torch

DEVICE = "cpu"

cpu_only = pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="is about CPU tensors")
gpu_only = pytest.mark.skipif("config.getoption('--device') != 'cuda'", reason="runs with --device cuda")


def use(name: str) -> None:
    """Set the device.

    Raises:
        pytest.UsageError: torch sees no such device.
    """
    global DEVICE
    if name == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device: expected a device that torch sees, got cuda")
        # Makes cuBLAS reproducible; read when a handle is created.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # float32 means IEEE here; by default cuDNN's recurrences round to TF32.
        torch.backends.cudnn.allow_tf32 = False
    DEVICE = name


def leave_if_broken() -> None:
    """End this process if a test has made its GPU unusable.

    A worker of xdist is replaced; the test that would have been next counts as failed.
    """
    if DEVICE != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"the GPU is broken for this process: {error}", returncode=1)
