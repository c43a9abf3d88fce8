"""The compiled library: found beside this file, loaded once, absent without harm."""

import warnings
from pathlib import Path

import torch


def _load() -> str | None:
    """Load the library; None, or why there is none."""
    found = sorted(Path(__file__).parent.glob("_C*.so"))
    if not found:
        return (
            "none was built when the package was installed: that takes a C++ compiler, and torch in the "
            "same environment (pip install --no-build-isolation)"
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        why = f"{found[0]} does not load with torch {torch.__version__}: {error}"
        # Who has built a library counts on its speed: eager is right too, and many times slower.
        warnings.warn(
            f"dmm_fast computes in eager PyTorch: {why}. Build it again beside this torch, in the "
            "package's source: pip install --no-build-isolation --no-deps --force-reinstall .",
            RuntimeWarning,
            stacklevel=2,
        )
        return why
    return None


missing: str | None = _load()
"""Why the compiled library is not there; None where it is."""

DTYPES = (torch.float32, torch.float64)
"""What the compiled CPU ops compute in."""


def cuda_architectures() -> str:
    """What the library's CUDA kernels were compiled for, as nvcc names it; empty where there are none."""
    return "" if missing else torch.ops.dmm_fast._cuda_architectures()


def instruction_set() -> str | None:
    """What the compiled CPU ops run on: avx512, avx2 or baseline; None without the library."""
    return None if missing else torch.ops.dmm_fast._instruction_set()


def raise_on_hang() -> None:
    """Raise what a CUDA kernel recorded when a wait for its other blocks timed out.

    This does not wait for the device, so it belongs after a synchronisation. Scans raise by themselves at
    their next launch, but a graph that is replayed launches none.

    Raises:
        RuntimeError: a wait has timed out since the last time that one was raised; results since then are
            wrong.
    """
    if not missing:
        torch.ops.dmm_fast._check_hangs()
