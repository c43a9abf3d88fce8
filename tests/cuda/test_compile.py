"""The CUDA kernels, compiled for GPUs that are not there, and the library that holds them."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dmm_fast import native
from tests.cuda.compile_table import ARCHITECTURES, Compiled, compile_all, demangled, parse

# Bytes of registers that may be stored to local memory, by kernel and architecture.
MAY_SPILL: dict[tuple[str, int], int] = {}


@pytest.fixture(scope="module")
def table() -> list[Compiled]:
    kernels = compile_all()
    if kernels is None:
        pytest.skip("no nvcc in CUDA_HOME or on PATH, or DMM_FAST_CUDA=0")
    return kernels


def test_no_kernel_spills(table: list[Compiled]) -> None:
    names = demangled([kernel.name for kernel in table])
    compiled = {(names[kernel.name], kernel.arch) for kernel in table}
    assert {("clipped_adam_kernel", arch) for arch in ARCHITECTURES} <= compiled
    assert MAY_SPILL.keys() <= compiled
    faults = [k for k in table if k.spill_stores + k.spill_loads > MAY_SPILL.get((names[k.name], k.arch), 0)]
    assert not faults


def test_the_library_loads_here_and_registers_every_kernel(table: list[Compiled]) -> None:
    assert native.missing is None
    assert native.cuda_architectures()
    assert torch.ops.dmm_fast.clipped_adam
    content = _library().read_bytes()
    assert [kernel.name for kernel in table if kernel.name.encode() not in content] == []


@pytest.mark.skipif(find_spec("triton") is None, reason="triton, whose wheel has cuobjdump, is not installed")
@pytest.mark.usefixtures("table")
def test_the_library_holds_the_architectures_that_it_names() -> None:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listed = subprocess.check_output([cuobjdump, "-lelf", "-lptx", _library()], text=True)
    held = {("sm_" if kind == "cubin" else "compute_") + arch for arch, kind in FILES.findall(listed)}
    assert held == set(native.cuda_architectures().split())


FILES = re.compile(r"\.sm_(\w+)\.(cubin|ptx)\b")


def _library() -> Path:
    (library,) = [
        p for p in map(Path, torch.ops.loaded_libraries) if p.parent == Path(native.__file__).parent
    ]
    return library


REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Function properties for called
    24 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
"""


def test_a_report_is_read_kernel_by_kernel() -> None:
    assert parse(REPORT, 90) == [
        Compiled("_Z1av", 90, 255, spill_stores=12, spill_loads=16, stack=40, shared=2048),
        Compiled("_Z1bv", 90, 4, spill_stores=0, spill_loads=0, stack=0, shared=0),
    ]
    assert parse("ptxas info    : 0 bytes gmem", 90) == []
    with pytest.raises(
        ValueError, match=r"^ptxas: expected a name, registers and spills of each kernel, got"
    ):
        parse(REPORT.replace("Used 4 registers", ""), 90)
