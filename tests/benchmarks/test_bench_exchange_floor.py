"""The library of the exchange floor: when it is built, and the messages if it is missing."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import exchange_floor
from benchmarks.gpu import __main__ as gpu
from dmm_fast import _extension

ROOT = exchange_floor.ROOT
IN_SOURCE = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the package's source is not here")
# Writes its arguments and, unless a file forbids it, a placeholder of the library.
NVCC = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "arguments.json").write_text(json.dumps(sys.argv[1:]))
if (here / "fails").exists():
    sys.exit(2)
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("built")
"""


@pytest.fixture
def library(monkeypatch, tmp_path):
    path = tmp_path / "_floor.so"
    monkeypatch.setattr(exchange_floor, "LIBRARY", path)
    monkeypatch.setattr(_extension, "cuda_architectures", lambda: "sm_90")
    return path


@pytest.fixture
def nvcc(monkeypatch, tmp_path):
    """A folder with a stub of nvcc, which is found first."""
    folder = tmp_path / "toolkit" / "bin"
    folder.mkdir(parents=True)
    (folder / "nvcc").write_text(NVCC.format(python=sys.executable))
    (folder / "nvcc").chmod(0o755)
    monkeypatch.delenv("DMM_FAST_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(folder.parent))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    return folder


def test_a_missing_floor_is_explained(library, monkeypatch):
    assert exchange_floor.missing("cpu") == "the exchange floor is a CUDA kernel, and the device is cpu"
    told = "_floor.so is not built: `python -m benchmarks.exchange_floor` builds it"
    assert exchange_floor.missing("cuda").startswith(told)
    library.write_text("no library")
    assert f"_floor.so does not load with torch {torch.__version__}: " in exchange_floor.missing("cuda")
    monkeypatch.setattr(_extension, "cuda_architectures", lambda: "")
    assert exchange_floor.missing("cuda") == "the package was built without CUDA kernels"


@IN_SOURCE
def test_it_is_built_with_the_flags_of_the_package(library, nvcc):
    assert exchange_floor.main([]) == 0
    arguments = json.loads((nvcc / "arguments.json").read_text())
    assert {"-O3", "-std=c++17", "-Icsrc", "-gencode=arch=compute_90,code=sm_90", "-shared"} <= set(arguments)
    sources = [word for word in arguments if word.endswith((".cpp", ".cu"))]
    assert sources == list(exchange_floor.SOURCES)
    assert all((ROOT / source).is_file() for source in sources)
    assert library.read_text() == "built"


@IN_SOURCE
def test_it_is_built_if_missing_or_out_of_date(library, nvcc, monkeypatch):
    assert exchange_floor.ensure() is None
    assert library.read_text() == "built"
    library.write_text("new")
    assert exchange_floor.ensure() is None
    assert library.read_text() == "new"
    os.utime(library, (0.0, 0.0))
    monkeypatch.setenv("DMM_FAST_CUDA", "0")  # an old library is better than none
    assert exchange_floor.ensure() is None
    assert library.read_text() == "new"
    monkeypatch.delenv("DMM_FAST_CUDA")
    assert exchange_floor.ensure() is None
    assert library.read_text() == "built"
    assert time.time() - library.stat().st_mtime < 60.0


@IN_SOURCE
def test_a_failed_build_leaves_no_old_library(library, nvcc, capsys):
    library.write_text("old")
    (nvcc / "fails").touch()
    assert exchange_floor.main([]) == 1
    assert capsys.readouterr().err == "_floor.so is not built: nvcc ended with status 2\n"
    assert not library.exists()


@IN_SOURCE
def test_without_nvcc_nothing_is_built(library, monkeypatch):
    monkeypatch.setenv("DMM_FAST_CUDA", "0")
    told = "_floor.so is not built: expected an nvcc in CUDA_HOME or on PATH, got none"
    assert exchange_floor.ensure() == told


def test_a_kit_contains_the_existing_library(library, monkeypatch, tmp_path):
    monkeypatch.setattr(exchange_floor, "ROOT", tmp_path)
    assert "expected the package's source" in exchange_floor.ensure()
    library.write_text("built elsewhere")
    assert exchange_floor.ensure() is None
    assert library.read_text() == "built elsewhere"


def test_a_run_on_a_gpu_builds_it_or_reports_it_as_skipped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(exchange_floor, "ensure", lambda: "_floor.so is not built: no nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        gpu, "run_stages", lambda budget, options: {"stages": [], "smoke": [], "profiles": []}
    )
    assert gpu.main(["--out", str(tmp_path), "--smoke"]) == 0
    message = "The floors of the scans' exchanges are skipped: _floor.so is not built: no nvcc."
    assert message in capsys.readouterr().out.splitlines()
    assert gpu.main(["--out", str(tmp_path), "--smoke", "--device", "cpu"]) == 0
    assert "skipped" not in capsys.readouterr().out


@IN_SOURCE
def test_its_bindings_match_the_headers_of_the_package():
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    from torch.utils.cpp_extension import include_paths

    flags = [
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Werror",
        "-fvisibility=hidden",
        "-DDMM_FAST_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]
    folders = [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in include_paths())]
    source = ROOT / "benchmarks" / "csrc" / "exchange_floor.cpp"
    ended = subprocess.run([compiler, *flags, *folders, source], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
