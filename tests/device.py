"""The kind of device that the tests of the ops compute on; ``pytest --device cuda`` changes it.

Set before a test module is imported, so that what is parametrized by backends asks for those of the device.
"""

import os

import pytest
import torch

DEVICE = "cpu"

cpu_only = pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="is about CPU tensors")
gpu_only = pytest.mark.skipif("config.getoption('--device') != 'cuda'", reason="runs with --device cuda")


def use(name: str) -> None:
    """Compute on ``name`` from now on.

    Raises:
        pytest.UsageError: torch sees no such device.
    """
    global DEVICE
    if name == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("--device: expected a device that torch sees, got cuda")
        # What cuBLAS wants to hear before it gives the same bits twice. Read when a handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # float32 means IEEE: cuDNN's recurrences would round to TF32 unless told.
        torch.backends.cudnn.allow_tf32 = False
    DEVICE = name


def leave_if_broken() -> None:
    """End this process when a test has broken its GPU, which stays broken for the process.

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
