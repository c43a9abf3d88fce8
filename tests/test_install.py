"""Builds of the package by the hooks of pip and ``build``, with and without torch and a compiler."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from setuptools import Distribution

from dmm_fast import _extension

ROOT = Path(__file__).parents[1]
NEEDED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")

# Prints the result of each hook or its exit status.
HOOKS = """
import contextlib, json, os, sys, types
from setuptools import build_meta

torch, made = sys.argv[1], {}
if torch == "none":
    sys.modules["torch"] = None
else:
    for name in ("torch", "torch.utils", "torch.utils.cpp_extension"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[name].include_paths = sys.modules[name].library_paths = lambda: []
os.mkdir("out")
for hook in sys.argv[2:]:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            made[hook] = getattr(build_meta, hook)(*([] if hook.startswith("get") else ["out"]))
        except SystemExit as stop:
            made[hook] = f"stopped: {stop}"
print(json.dumps(made))
"""

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the package's source is not here")


@pytest.fixture
def setup() -> ModuleType:
    """Import ``setup.py``."""
    spec = importlib.util.spec_from_file_location("dmm_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The source as in a clean clone."""
    built = shutil.ignore_patterns("*.so", "_pure", "__pycache__")
    for folder in ("dmm_fast", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / "source" / folder, ignore=built)
    for file in NEEDED:
        shutil.copy(ROOT / file, tmp_path / "source")
    return tmp_path / "source"


def run_hooks(source: Path, *hooks: str, torch: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", HOOKS, torch, *hooks],
        cwd=source,
        env={**os.environ, "DMM_FAST_PURE": "0", "DMM_FAST_CUDA": "0", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_without_torch_a_build_stops_and_a_source_distribution_is_made(source: Path) -> None:
    stop = ("prepare_metadata_for_build_wheel", "build_wheel", "build_editable")
    (source / "tests").mkdir()
    (source / "tests" / "test_planted.py").touch()
    made = run_hooks(source, "get_requires_for_build_wheel", "build_sdist", *stop, torch="none")
    assert made.pop("get_requires_for_build_wheel") == []
    with tarfile.open(source / "out" / made.pop("build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*NEEDED, "dmm_fast/cli.py", "csrc/library.cpp", "csrc/checks.h", "csrc/cuda/rnn_scan.cu"} <= names
    assert not [name for name in names if "exchange_floor" in name or name.startswith("tests/")]
    assert set(made) == set(stop)
    for message in made.values():
        assert message.startswith("stopped: dmm_fast: the C++ ops need torch to build")
        assert "install torch first, then run `pip install --no-build-isolation .`" in message
        assert message.endswith("run `DMM_FAST_PURE=1 pip install .`")
        assert "\n" not in message
    assert not [*source.glob("out/*.whl"), *source.glob("out/*.dist-info")]


def test_where_the_compiler_fails_the_build_stops(source: Path) -> None:
    made = run_hooks(source, "build_wheel", torch="a stub", CC="no-such-compiler", CXX="no-such-compiler")
    assert made["build_wheel"].startswith("stopped: dmm_fast: the C++ ops do not compile (")
    assert "no-such-compiler" in made["build_wheel"]
    assert "install a C++ compiler" in made["build_wheel"]
    assert not list(source.glob("out/*.whl"))


def test_a_pure_install_needs_neither_and_is_marked(source: Path) -> None:
    made = run_hooks(source, "build_wheel", torch="none", DMM_FAST_PURE="1", CXX="no-such-compiler")
    assert made["build_wheel"].endswith("-py3-none-any.whl")
    with zipfile.ZipFile(source / "out" / made["build_wheel"]) as wheel:
        names = wheel.namelist()
    assert f"dmm_fast/{_extension.PURE_MARKER}" in names
    assert "dmm_fast/py.typed" in names
    assert not [name for name in names if name.endswith(".so")]


def test_an_editable_install_is_marked_until_it_has_a_library(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "HERE", tmp_path)
    monkeypatch.setattr(setup, "torch_paths", lambda: ([], []))
    marker = tmp_path / "dmm_fast" / _extension.PURE_MARKER
    marker.parent.mkdir()
    pure, library = setup.PurePython(Distribution()), setup.BuildLibrary(Distribution())
    pure.ensure_finalized()
    library.ensure_finalized()
    pure.editable_mode = library.inplace = True
    for _ in range(2):
        pure.run()
        assert marker.exists()
    for _ in range(2):
        library.run()
        assert not marker.exists()


def test_a_library_holds_no_path_of_the_machine(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "torch_paths", lambda: (["/here/torch/include"], []))
    monkeypatch.setattr(setup.build_ext, "run", lambda self: None)
    library = setup.BuildLibrary(Distribution({"ext_modules": [setup.library()]}))
    library.ensure_finalized()
    library.run()
    (extension,) = library.extensions
    assert extension.extra_compile_args[-1] == "-ffile-prefix-map=/here/torch/include/="


def test_values_of_dmm_fast_pure(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMM_FAST_PURE", "yes")
    with pytest.raises(SystemExit, match="DMM_FAST_PURE: expected 0 or 1, got 'yes'"):
        setup.settings()


def test_an_old_setuptools_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires = ["setuptools>={setup.OLDEST_SETUPTOOLS}"]' in pyproject
    monkeypatch.setattr(setup.setuptools, "__version__", "76.1.0")
    with pytest.raises(SystemExit, match=r"setuptools>=77, got 76\.1\.0: run `pip install 'setuptools>=77'`"):
        setup.settings()


@pytest.mark.parametrize("free_threaded", [False, True])
def test_free_threaded_python_has_no_limited_api(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, free_threaded: bool
) -> None:
    variable = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig,
        "get_config_var",
        lambda name: free_threaded if name == "Py_GIL_DISABLED" else variable(name),
    )
    monkeypatch.delenv("DMM_FAST_PURE", raising=False)
    settings = setup.settings()
    (library,) = settings["ext_modules"]
    assert library.py_limited_api is not free_threaded
    assert ("Py_LIMITED_API" in dict(library.define_macros)) is not free_threaded
    wheel = Distribution({"name": "dmm-fast", **settings}).get_command_obj("bdist_wheel")
    wheel.ensure_finalized()  # refuses a limited API there
    assert ("abi3" in wheel.get_tag()) is not free_threaded
