"""Audit of a built wheel: tag, contents, and the dynamic section and symbols of its compiled library.

    python -m tests.wheel_audit dist/*.whl

``make wheel`` runs it after ``auditwheel repair``, which picks the manylinux tag and would copy any library
from outside torch, the C++ runtime and glibc into the wheel.
"""

import re
import sys
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from tests.test_stable_abi import undefined_symbols, unstable

ROOT = Path(__file__).parents[1]
WHEEL_NAME = re.compile(r"dmm_fast-[\d.]+(?:\.?\w+)?-cp310-abi3-(?P<platform>\w+)\.whl")
NEEDED = {
    *("libc10.so", "libtorch.so", "libtorch_cpu.so"),  # torch loads its own before the package is imported
    *("libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2"),
    *("libstdc++.so.6", "libgcc_s.so.1"),
}
# A path of the machine that built the library, as __FILE__ and debug information hold them.
SOURCE_PATH = re.compile(rb"(?<![\w.+/-])/(?:[\w.+-]+/)+[\w.+-]+\.(?:h|hpp|c|cc|cpp|cu|cuh|inc|py)\b")


class Library(NamedTuple):
    """Requirements of a shared library."""

    needed: list[str]
    run_paths: list[str]
    versions: dict[str, tuple[int, ...]]
    """Newest symbol version of each kind, such as ``{"GLIBC": (2, 34)}``."""


def read_library(elf: bytes) -> Library:
    """Read a library's dynamic section and the versions of the symbols that it imports."""
    file = ELFFile(BytesIO(elf))
    needed, run_paths = [], []
    versions: dict[str, tuple[int, ...]] = {}
    for section in file.iter_sections():
        if isinstance(section, DynamicSection):
            needed += [tag.needed for tag in section.iter_tags("DT_NEEDED")]
            run_paths += [tag.rpath for tag in section.iter_tags("DT_RPATH")]
            run_paths += [tag.runpath for tag in section.iter_tags("DT_RUNPATH")]
        elif isinstance(section, GNUVerNeedSection):
            for _, symbols in section.iter_versions():
                for symbol in symbols:
                    kind, _, version = symbol.name.partition("_")
                    if re.fullmatch(r"[\d.]+", version):
                        numbers = tuple(map(int, version.split(".")))
                        versions[kind] = max(versions.get(kind, ()), numbers)
    return Library(needed, run_paths, versions)


def faults_of_library(elf: bytes) -> list[str]:
    """Reasons why a library would not load elsewhere, or tells of the machine that built it."""
    library = read_library(elf)
    faults = [f"needs {name}, which no wheel may expect" for name in library.needed if name not in NEEDED]
    faults += [f"has the run path {path!r}" for path in library.run_paths]
    faults += [f"imports {symbol}, which is in no stable ABI" for symbol in unstable(undefined_symbols(elf))]
    paths = {match[0].decode() for match in SOURCE_PATH.finditer(elf)}
    return faults + [f"holds the path {path}" for path in sorted(paths)]


def faults_of_contents(names: Iterable[str], modules: set[str]) -> list[str]:
    """Files that are missing from a wheel or that do not belong in one.

    ``modules`` are the Python files of the source, relative to its root.
    """
    names = set(names)
    package = {name for name in names if not PurePosixPath(name).parts[0].endswith(".dist-info")}
    expected = {*modules, "dmm_fast/py.typed", "dmm_fast/_C.abi3.so"}
    return [
        *(f"lacks {name}" for name in sorted(expected - package)),
        *(f"holds {name}" for name in sorted(package - expected)),
        *([] if any(name.endswith(".dist-info/licenses/LICENSE") for name in names) else ["lacks LICENSE"]),
    ]


def audit(wheel: Path) -> list[str]:
    """List the faults of a wheel, and print what it needs."""
    named = WHEEL_NAME.fullmatch(wheel.name)
    if not named:
        return [
            f"expected a name as in dmm_fast-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl, got {wheel.name}"
        ]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dmm_fast").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        elf = archive.read("dmm_fast/_C.abi3.so") if "dmm_fast/_C.abi3.so" in names else b""
    faults = faults_of_contents(names, modules)
    if not elf:
        return faults
    library = read_library(elf)
    newest = [f"{kind} {'.'.join(map(str, version))}" for kind, version in sorted(library.versions.items())]
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files")
    print(f"  needs {', '.join(sorted(library.needed))}")
    print(f"  newest symbol versions: {', '.join(newest)}")
    glibc = re.match(r"manylinux_2_(\d+)_", named["platform"])
    if glibc and library.versions.get("GLIBC", ()) > (2, int(glibc[1])):
        faults.append(f"needs a newer glibc than its tag says: {named['platform']}")
    return faults + faults_of_library(elf)


def main(arguments: list[str]) -> int:
    """Audit each file. Returns 0, or 1 where one has a fault or there is none."""
    faults = [f"{path}: {fault}" for path in arguments for fault in audit(Path(path))]
    print(*faults, sep="\n", file=sys.stderr, end="\n" if faults else "")
    return int(bool(faults) or not arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
