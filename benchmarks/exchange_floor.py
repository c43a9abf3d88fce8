"""``python -m benchmarks.exchange_floor``: build the kernel that measures a lower bound of a scan's time.

The kernel exchanges data between blocks as a scan does, without any arithmetic. It is not part of the
package: a library of its own registers it as ``dmm_fast_benchmarks::exchange_floor``. nvcc compiles it with
the flags of ``setup.py``, for which no GPU is needed, and any supported torch can load it.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import torch

from benchmarks import ROOT
from dmm_fast import _extension

LIBRARY = ROOT / "benchmarks" / "_floor.so"
SOURCES = (
    "benchmarks/csrc/exchange_floor.cpp",
    "benchmarks/csrc/exchange_floor.cu",
    "csrc/hangs.cpp",
    "csrc/cuda/hang.cu",
)
COMMAND = "python -m benchmarks.exchange_floor"


def missing(device: str) -> str | None:
    """Load the op. Returns None, or the reason why it is not available on ``device``."""
    if device != "cuda":
        return f"the exchange floor is a CUDA kernel, and the device is {device}"
    if not _extension.cuda_architectures():
        return "the package was built without CUDA kernels"
    if not LIBRARY.is_file():
        return f"{LIBRARY.name} is not built: `{COMMAND}` builds it in the package's source, with nvcc"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"{LIBRARY.name} does not load with torch {torch.__version__}: {error}"
    return None


def raise_on_hang() -> None:
    """Raise an error if the kernel has recorded a wait for other blocks that timed out.

    Raises:
        RuntimeError: a wait has timed out since the last call.
    """
    torch.ops.dmm_fast_benchmarks.check_hangs()


def ensure() -> str | None:
    """Build the library if it is missing, or out of date and can be built.

    Returns None, or the reason why there is no library.
    """
    if LIBRARY.is_file() and not (_can_build() and _is_old()):
        return None
    return build()


def build() -> str | None:
    """Build the library. Returns None, or the reason why there is no library."""
    if not (ROOT / "setup.py").is_file():
        return f"{LIBRARY.name} is not built: expected the package's source in {ROOT}, got none"
    setup = _setup()
    home = setup.toolkit()
    if home is None:
        return f"{LIBRARY.name} is not built: expected an nvcc in CUDA_HOME or on PATH, got none"
    headers, libraries = setup.torch_paths()
    command = [
        *setup.nvcc(home),
        *("-shared", "-DDMM_FAST_CUDA", f"-DTORCH_TARGET_VERSION={setup.TARGET_TORCH}"),
        *(f"-I{folder}" for folder in headers),
        *SOURCES,
        *(f"-L{folder}" for folder in libraries),
        *(f"-l{name}" for name in setup.TORCH_LIBRARIES),
        *("-o", str(LIBRARY)),
    ]
    LIBRARY.unlink(missing_ok=True)
    print(" ".join(command), flush=True)
    if status := subprocess.run(command, cwd=ROOT).returncode:
        return f"{LIBRARY.name} is not built: nvcc ended with status {status}"
    return None


def _can_build() -> bool:
    return (ROOT / "setup.py").is_file() and _setup().toolkit() is not None


def _is_old() -> bool:
    """True if a source file is newer than the library."""
    headers = (ROOT / "csrc").rglob("*.*h")
    files = [
        ROOT / "setup.py",
        *(ROOT / "benchmarks" / "csrc").iterdir(),
        *headers,
        *map(ROOT.joinpath, SOURCES),
    ]
    return max(file.stat().st_mtime for file in files) > LIBRARY.stat().st_mtime


def _setup() -> Any:
    """Import ``setup.py``, which has the compiler flags of the package."""
    spec = spec_from_file_location("dmm_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    """Build the library. Returns 0, or 1 if that failed."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(argv)
    why = build()
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
