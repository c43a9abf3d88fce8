"""Resources of the CUDA kernels in the built library: registers, stack, static shared memory.

    python -m tests.cuda.resource_table

No GPU is needed. Spilled registers are stored on the stack, so a kernel without a stack has no spills. The
tool, cuobjdump, comes with the wheel of Triton.
"""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch


class Resources(NamedTuple):
    """Resources of a kernel for an architecture, with its name in the source, without arguments."""

    name: str
    arch: str
    registers: int
    stack: int
    shared: int


def library() -> Path:
    """The compiled library that is loaded."""
    from dmm_fast import _extension  # imported here, as other binaries are read without the library

    package = Path(_extension.__file__).parent
    (found,) = [path for path in map(Path, torch.ops.loaded_libraries) if path.parent == package]
    return found


def cuobjdump(*flags: str, binary: Path | None = None) -> str | None:
    """The output of the tool for a file, by default the library; None without the tool."""
    triton = find_spec("triton")
    beside = triton and triton.origin and Path(triton.origin).parent / "backends" / "nvidia" / "bin"
    tool = shutil.which("cuobjdump", path=beside or None)
    # The tool warns of each file of the library that lacks a requested function.
    return tool and subprocess.check_output(
        [tool, *flags, binary or library()], text=True, stderr=subprocess.PIPE
    )


_ARCH = re.compile(r"^arch = (\w+)$")
_FUNCTION = re.compile(r"^ Function (\w+):$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) ")


def parse(report: str) -> list[Resources]:
    """Parse the output of ``cuobjdump -res-usage``."""
    found, arch, name = [], "", ""
    for line in report.splitlines():
        if match := _ARCH.match(line):
            arch = match[1]
        elif match := _FUNCTION.match(line):
            name = match[1]
        elif match := _USAGE.search(line):
            found.append(Resources(name, arch, *map(int, match.groups())))
    return found


def table(binary: Path | None = None) -> list[Resources] | None:
    """All kernels of a file, by default the library, for each architecture; None without the tool."""
    report = cuobjdump("-res-usage", binary=binary)
    if report is None:
        return None
    kernels = parse(report)
    names = demangled(sorted({kernel.name for kernel in kernels}))
    return sorted(kernel._replace(name=names[kernel.name]) for kernel in kernels)


def demangled(names: list[str]) -> dict[str, str]:
    """The names in the source by those in the library; unchanged without c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    lines = subprocess.check_output([tool, *names], text=True).splitlines()
    short = [re.sub(r"^void |dmm::cuda::|\(.*", "", line) for line in lines]
    return dict(zip(names, short, strict=True))


def main() -> None:
    kernels = table()
    if kernels is None:
        sys.exit("cuobjdump: expected it on PATH or in the package triton, got none")
    print(f"{'kernel':42}{'arch':>6}{'registers':>10}{'stack':>6}{'shared':>7}")
    for k in kernels:
        print(f"{k.name:42}{k.arch:>6}{k.registers:10}{k.stack:6}{k.shared:7}")


if __name__ == "__main__":
    main()
