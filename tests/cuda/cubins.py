"""Kernels that exchange through device memory, compiled for GPUs without machine code in the library."""

import importlib.util
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*_words*.cu"))


@contextmanager
def compiled(arch: str) -> Iterator[list[Path]]:
    """Compile each of :data:`SOURCES` to a file, which exists until the block ends.

    Raises:
        FileNotFoundError: there is no nvcc.
        CalledProcessError: nvcc failed.
    """
    setup = _setup()
    home = setup.toolkit()
    if home is None:
        raise FileNotFoundError("nvcc: expected one in CUDA_HOME or on PATH, got none")
    command = [str(home / "bin" / "nvcc"), *setup.NVCC_FLAGS, f"-arch={arch}", "-cubin"]
    with TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        files = [Path(folder) / f"{source.stem}.cubin" for source in SOURCES]

        def compile_one(source: Path, target: Path) -> None:
            subprocess.run([*command, str(source), "-o", str(target)], check=True, cwd=ROOT)

        list(pool.map(compile_one, SOURCES, files))
        yield files


def _setup() -> ModuleType:
    """Import ``setup.py``, which has the compiler flags."""
    spec = importlib.util.spec_from_file_location("dmm_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
