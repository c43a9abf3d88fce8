"""The compiled libraries use only the stable ABIs of torch and Python."""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import exchange_floor
from dmm_fast import _extension

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

# torch: the functions of its C shims. Headers of torch::stable and torch::headeronly leave nothing undefined.
TORCH_C = re.compile(r"(aoti_)?torch_\w+")
TORCH_CPP = re.compile(r"N[rVK]*(2at|3c10|5torch|6caffe2)(?!E)")
# The C++ run-time: std, type information, new and delete.
CPP = re.compile(r"_Z(T[ISTV])?(N?[rVK]*S[tabsiod]|N10__cxxabiv1|n[wa]|d[la])")
# Python: the part of the limited API, https://docs.python.org/3/c-api/stable.html, that the library uses.
PYTHON = {"PyModule_Create2"}

STABLE_HEADERS = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/shim.h")
UNSTABLE_HEADERS = ("torch/", "ATen/", "c10/", "caffe2/", "pybind11/")


def undefined_symbols(elf: bytes) -> list[str]:
    """The undefined symbols of a shared library."""
    if elf[:6] != b"\x7fELF\x02\x01":
        pytest.skip("libraries here are no ELF files of 64 bits, little-endian")
    sections, size, count = (*struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HH", elf, 0x3A))
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, sections + i * size) for i in range(count)]
    (symbols,) = [header for header in headers if header[1] == 11]  # SHT_DYNSYM
    _, _, _, _, start, length, names, _, _, entry = symbols
    found = []
    for place in range(start + entry, start + length, entry):
        name, _, _, section = struct.unpack_from("<IBBH", elf, place)
        if section == 0:
            begin = headers[names][4] + name
            found.append(elf[begin : elf.index(b"\0", begin)].decode())
    return found


def unstable(symbols: list[str]) -> list[str]:
    """Select the symbols that a later torch or Python may not have."""

    def is_stable(name: str) -> bool:
        if name.startswith("_Z"):
            return bool(CPP.match(name)) and not TORCH_CPP.search(name)
        if re.match("_?Py|THP", name):
            return name in PYTHON
        return "torch" not in name or bool(TORCH_C.fullmatch(name))

    return [name for name in symbols if not is_stable(name)]


def unstable_includes(source: str) -> list[str]:
    """The included headers of torch outside its stable ABI, and those of pybind11."""
    headers = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', source, re.MULTILINE)
    return [h for h in headers if h.startswith(UNSTABLE_HEADERS) and not h.startswith(STABLE_HEADERS)]


def sources() -> Iterator[Path]:
    """All source files of the libraries; the emulator is a separate module for tests."""
    folders = (CSRC, ROOT / "benchmarks" / "csrc")
    files = (path for folder in folders for path in folder.rglob("*.[hc]*"))
    return (path for path in files if path.parent.name != "emulator")


def test_the_library_needs_only_stable_symbols() -> None:
    if _extension.missing is not None:
        pytest.skip(f"no compiled library: {_extension.missing}")
    (library,) = Path(_extension.__file__).parent.glob("_C*.so")
    symbols = undefined_symbols(library.read_bytes())
    assert {"aoti_torch_get_dtype", "torch_call_dispatcher", "PyModule_Create2"} <= set(symbols)
    assert unstable(symbols) == []


def test_the_exchange_floor_needs_only_stable_symbols() -> None:
    if not exchange_floor.LIBRARY.is_file():
        pytest.skip("the library of the exchange floor is not built")
    symbols = undefined_symbols(exchange_floor.LIBRARY.read_bytes())
    assert {"aoti_torch_get_dtype", "torch_call_dispatcher"} <= set(symbols)
    assert unstable(symbols) == []


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN2at9TensorImpl6resizeEv",
        "_ZNK3c1010TensorImpl4sizeEv",
        "_ZN3c10lsERSoNS_10DeviceTypeE",
        "_ZTIN3c105ErrorE",
        "_ZN5torch8autograd12VariableInfoC1Ev",
        "_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev",
        "_Z16THPVariable_WrapRKi",
        "_ZN8pybind1112error_scopeC1Ev",
        "THPVariableClass",
        "PyUnicode_AsUTF8",
        "_Py_IncRef",
        "_torch_hidden",
    ],
)
def test_an_unstable_symbol_is_detected(symbol: str) -> None:
    assert unstable(["malloc", symbol, "_ZNSs2atEm", "_ZNKSt6vectorIiSaIiEE2atEm"]) == [symbol]


def test_symbols_are_read_from_a_library(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "planted.c", tmp_path / "planted.so"
    source.write_text("extern int _ZN2at4sizeEv(void);\nint defined(void) { return _ZN2at4sizeEv(); }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    symbols = undefined_symbols(library.read_bytes())
    assert "defined" not in symbols
    assert unstable(symbols) == ["_ZN2at4sizeEv"]


def test_the_sources_include_only_stable_headers() -> None:
    if not CSRC.is_dir():
        pytest.skip(f"the sources are not here: {CSRC}")
    found = {path: unstable_includes(path.read_text(encoding="utf-8")) for path in sources()}
    assert len(found) > 20
    assert {path: headers for path, headers in found.items() if headers} == {}


def test_the_kernels_do_not_include_torch() -> None:
    if not CSRC.is_dir():
        pytest.skip(f"the sources are not here: {CSRC}")
    kernels = [path for path in sources() if path.parent.name in ("cpu", "cuda")]
    assert kernels
    assert [path for path in kernels if "#include <torch/" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    "header",
    ["torch/extension.h", "torch/csrc/inductor/x.h", "ATen/ATen.h", "c10/util/Half.h", "pybind11/stl.h"],
)
def test_an_unstable_header_is_detected(header: str) -> None:
    stable = "#include <vector>\n#include <torch/csrc/stable/ops.h>\n"
    assert unstable_includes(f"{stable}#  include <{header}>\n") == [header]
