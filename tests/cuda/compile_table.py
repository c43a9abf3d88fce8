"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, stack, static shared memory.

    python -m tests.cuda.compile_table [--arch 80 90]

Each file of csrc/cuda is compiled with the toolkit and the flags of setup.py, for each architecture to
machine code and to PTX.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Compiled:
    """A kernel as the assembler reports it; spills and stack include the functions that it calls."""

    name: str
    arch: int
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def build_script() -> ModuleType:
    """setup.py as a module: it knows the toolkit, the sources and the flags."""
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(report: str, arch: int) -> list[Compiled]:
    """The kernels in what ``ptxas -v`` says, under their mangled names."""
    _, *kernels = re.split(r"Compiling entry function ", report)
    return [_parse_one(kernel, arch) for kernel in kernels]


def _parse_one(report: str, arch: int) -> Compiled:
    name = re.match(r"'(\S+)' for 'sm_\w+'", report)
    registers = re.search(r"Used (\d+) registers", report)
    held = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared = re.search(r"(\d+) bytes smem", report)
    if not (name and registers and held):
        raise ValueError(f"ptxas: expected a name, registers and spills of each kernel, got {report!r}")
    stack, stores, loads = (sum(int(row[k]) for row in held) for k in range(3))
    return Compiled(name[1], arch, int(registers[1]), stores, loads, stack, int(shared[1]) if shared else 0)


def compile_one(nvcc: Path, flags: list[str], source: Path, arch: int) -> list[Compiled]:
    """The kernels of one file for one architecture."""
    code = f"-gencode=arch=compute_{arch},code=[sm_{arch},compute_{arch}]"
    command = [str(nvcc), *flags, "-Xptxas", "-v", "-fatbin", code, str(source), "-o", os.devnull]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return parse(done.stdout + done.stderr, arch)


def compile_all(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Compiled] | None:
    """Every kernel for each architecture; None where there is no nvcc."""
    script = build_script()
    home = script.toolkit()
    if home is None:
        return None
    jobs = [(source, arch) for source in script.CUDA_SOURCES for arch in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = pool.map(lambda job: compile_one(home / "bin" / "nvcc", script.NVCC_FLAGS, *job), jobs)
        return sorted((kernel for table in tables for kernel in table), key=lambda k: (k.name, k.arch))


def demangled(names: list[str]) -> dict[str, str]:
    """The names of kernels as the source has them, where there is a tool that knows; without arguments."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return {name: name for name in names}
    lines = subprocess.check_output([tool, *names], text=True).splitlines()
    short = [re.sub(r"^void |dmm::cuda::|\(.*", "", line) for line in lines]
    return dict(zip(names, short, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, without their dot"
    )
    table = compile_all(tuple(parser.parse_args().arch))
    if table is None:
        sys.exit("nvcc: expected one in CUDA_HOME or on PATH, got none")
    names = demangled([kernel.name for kernel in table])
    print(f"{'kernel':40} {'arch':>4} {'registers':>9} {'stores':>6} {'loads':>5} {'stack':>5} {'shared':>6}")
    for k in table:
        spills = f"{k.spill_stores:6} {k.spill_loads:5}"
        print(f"{names[k.name]:40} {k.arch:4} {k.registers:9} {spills} {k.stack:5} {k.shared:6}")


if __name__ == "__main__":
    main()
