"""The compiled library: found beside this file, loaded once, absent without harm."""

import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import torch

PURE_MARKER = "_pure"
"""A file beside this one, which setup.py writes where the library is left out on purpose."""


_BUILD_AGAIN = "pip install --no-build-isolation --no-deps --force-reinstall ."


def _load() -> str | None:
    """Load the library; None, or why there is none."""
    here = Path(__file__).parent
    library = _library_in(here)
    if library is not None:
        try:
            torch.ops.load_library(str(library))
            return None
        except OSError as error:
            why = f"{library} does not load with torch {torch.__version__}: {error}"
            remedy = f"Build it again beside this torch, in the package's source: {_BUILD_AGAIN}"
    elif (here / PURE_MARKER).exists():
        return "left out on purpose: the package was installed with DMM_FAST_PURE=1"
    elif hidden := _hidden_by(here):
        why = f"{here} holds no compiled library and hides {hidden}, which holds one"
        remedy = "Run Python in another folder, or build one here too: python setup.py build_ext --inplace"
    else:
        why = f"{here} holds no compiled library"
        remedy = "Build it beside torch, in the package's source: pip install --no-build-isolation -e . "
        remedy += "(after DMM_FAST_PURE=1 it leaves the library out, on purpose)"
    return _without(why, remedy)


def _without(why: str, remedy: str) -> str:
    """Say that there is no library, but for one that was left out on purpose.

    Eager PyTorch is right too, and many times slower.
    """
    warnings.warn(f"dmm_fast computes in eager PyTorch: {why}. {remedy}", RuntimeWarning, stacklevel=3)
    return why


def leave_out(difference: str) -> None:
    """Do without the library, which is of another version of the package than this Python code."""
    global missing, of_other_version
    why = f"the compiled library is of another version of the package: {difference}"
    remedy = f"Build it again, in the package's source: make install, or {_BUILD_AGAIN}"
    missing = of_other_version = _without(why, remedy)


def _library_in(package: Path) -> Path | None:
    return next(iter(sorted(package.glob("_C*.so"))), None)


def _hidden_by(here: Path) -> Path | None:
    """Another ``dmm_fast`` that could have been imported instead of this one, and has a library."""
    others = (package for package in _packages() if package.resolve() != here.resolve())
    return next(filter(_library_in, others), None)


def _packages() -> Iterator[Path]:
    """The folder of each ``dmm_fast`` on ``sys.path`` or in an editable install."""
    specs = [PathFinder.find_spec("dmm_fast", [folder]) for folder in sys.path]
    specs += [finder.find_spec("dmm_fast", None) for finder in sys.meta_path]
    return (Path(spec.origin).parent for spec in specs if spec and spec.origin)


missing: str | None = _load()
"""Why the compiled library is not there; None where it is."""

of_other_version: str | None = None
"""Why a library that was loaded is of no use; its ops have the names that others would be defined by."""

DTYPES = (torch.float32, torch.float64)
"""Dtypes of the compiled CPU ops."""


def cuda_architectures() -> str:
    """Architectures of the library's CUDA kernels, as nvcc names them; empty where there are none."""
    return "" if missing else torch.ops.dmm_fast._cuda_architectures()


def instruction_set() -> str | None:
    """Instruction set of the compiled CPU ops: avx512, avx2 or baseline; None without the library."""
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
