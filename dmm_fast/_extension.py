"""Loading of the compiled library beside this file; without it the package computes in eager PyTorch."""

import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import torch

PURE_MARKER = "_pure"
"""Name of a marker file that setup.py writes beside this one if the library is left out on purpose."""


_BUILD_AGAIN = "pip install --no-build-isolation --no-deps --force-reinstall ."


def _load() -> str | None:
    """Load the library; returns None, or the reason why it is missing."""
    here = Path(__file__).parent
    library = _library_in(here)
    if library is not None:
        try:
            torch.ops.load_library(str(library))
            return None
        except OSError as error:
            why = f"{library} does not load with torch {torch.__version__}: {error}"
            remedy = f"Rebuild it with this torch, in the package's source folder: {_BUILD_AGAIN}"
    elif (here / PURE_MARKER).exists():
        return "left out on purpose: the package was installed with DMM_FAST_PURE=1"
    elif hidden := _hidden_by(here):
        why = f"{here} holds no compiled library and hides {hidden}, which holds one"
        remedy = "Run Python in another folder, or build one here too: python setup.py build_ext --inplace"
    else:
        why = f"{here} holds no compiled library"
        remedy = "Build it in the package's source folder: pip install --no-build-isolation -e . "
        remedy += "(with DMM_FAST_PURE=1 this leaves the library out on purpose)"
    return _without(why, remedy)


def _without(why: str, remedy: str) -> str:
    """Warn that the library is missing; eager PyTorch gives the same results, many times slower."""
    warnings.warn(f"dmm_fast computes in eager PyTorch: {why}. {remedy}", RuntimeWarning, stacklevel=3)
    return why


def leave_out(difference: str) -> None:
    """Disable the loaded library, whose version differs from that of this Python code."""
    global missing, of_other_version
    why = f"the compiled library is of another version of the package: {difference}"
    remedy = f"Rebuild it in the package's source folder: make install, or {_BUILD_AGAIN}"
    missing = of_other_version = _without(why, remedy)


def _library_in(package: Path) -> Path | None:
    return next(iter(sorted(package.glob("_C*.so"))), None)


def _hidden_by(here: Path) -> Path | None:
    """Another importable ``dmm_fast`` that has a compiled library and is hidden by this one."""
    others = (package for package in _packages() if package.resolve() != here.resolve())
    return next(filter(_library_in, others), None)


def _packages() -> Iterator[Path]:
    """The folder of each ``dmm_fast`` on ``sys.path`` or in an editable install."""
    specs = [PathFinder.find_spec("dmm_fast", [folder]) for folder in sys.path]
    specs += [finder.find_spec("dmm_fast", None) for finder in sys.meta_path]
    return (Path(spec.origin).parent for spec in specs if spec and spec.origin)


missing: str | None = _load()
"""The reason why the compiled library is missing; None if it is loaded."""

of_other_version: str | None = None
"""The reason why a loaded library cannot be used; its ops still occupy their names in torch's registry."""

DTYPES = (torch.float32, torch.float64)
"""Dtypes of the compiled CPU ops."""


def cuda_architectures() -> str:
    """Architectures of the library's CUDA kernels, as nvcc names them; empty if it has no kernels."""
    return "" if missing else torch.ops.dmm_fast._cuda_architectures()


def instruction_set() -> str | None:
    """Instruction set of the compiled CPU ops: avx512, avx2 or baseline; None without the library."""
    return None if missing else torch.ops.dmm_fast._instruction_set()


def raise_on_hang() -> None:
    """Raise an error if a CUDA kernel has recorded that a wait for its other blocks timed out.

    The function does not synchronise the device, so call it after a synchronisation. A scan makes this check
    itself at its next launch, but replays of a CUDA graph do not.

    Raises:
        RuntimeError: a wait has timed out since this error was last raised; results since then are wrong.
    """
    if not missing:
        torch.ops.dmm_fast._check_hangs()
