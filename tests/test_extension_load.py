"""Warnings for a library that does not load or is missing; none if it is missing intentionally."""

import re
import runpy
import shutil
import subprocess
import sys
import warnings
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dmm_fast
from dmm_fast import _extension

IMPORT = """
import dmm_fast, torch
print(dmm_fast.info()["missing"]["cpp"])
print(dmm_fast.info()["instruction_set"])
print(dmm_fast.GatedTransition(2, 3)(torch.zeros(2))[0].shape)
"""


def test_a_library_that_does_not_load_is_reported_once_and_eager_computes(tmp_path: Path) -> None:
    source = Path(dmm_fast.__file__).parent
    shutil.copytree(source, tmp_path / "dmm_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = tmp_path / "dmm_fast" / "_C.abi3.so"
    library.write_bytes(b"no library")
    command = [sys.executable, "-W", "always::RuntimeWarning", "-c", IMPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeWarning: dmm_fast computes in eager PyTorch") == 1
    (told,) = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    why, instruction_set, shape = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(library))} does not load with torch [^ ]+: .+", why)
    assert f"{why}. Rebuild it" in told
    assert "pip install --no-build-isolation" in told
    assert instruction_set == "None"
    assert shape == "torch.Size([2])"


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    package = package_in(tmp_path)
    why = f"{package} holds no compiled library"
    with pytest.warns(RuntimeWarning) as told:
        module = runpy.run_path(str(package / "_extension.py"))
    (warning,) = told
    assert str(warning.message).startswith(f"dmm_fast computes in eager PyTorch: {why}. Build it")
    assert "pip install --no-build-isolation -e ." in str(warning.message)
    assert "DMM_FAST_PURE=1" in str(warning.message)
    assert module["missing"] == why
    assert module["instruction_set"]() is None
    module["raise_on_hang"]()


@pytest.mark.parametrize("editable", [False, True])
def test_a_checkout_that_hides_a_library_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool
) -> None:
    checkout, installed = package_in(tmp_path / "checkout"), package_in(tmp_path / "installed")
    folders = ["", str(tmp_path / "nowhere")]  # the first entry is the current folder
    finders: list[Any] = []
    if editable:
        spec = spec_from_file_location("dmm_fast", installed / "__init__.py")
        finders.append(SimpleNamespace(find_spec=lambda name, path: spec if name == "dmm_fast" else None))
    else:
        folders.append(str(tmp_path / "installed"))
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setattr(sys, "path", folders)
    monkeypatch.setattr(sys, "meta_path", [PathFinder, *finders])
    with pytest.warns(RuntimeWarning, match="holds no compiled library. Build it"):
        runpy.run_path(str(checkout / "_extension.py"))
    (installed / "_C.abi3.so").touch()
    with pytest.warns(RuntimeWarning, match="Run Python in another folder, or build one here too"):
        module = runpy.run_path(str(checkout / "_extension.py"))
    assert module["missing"] == f"{checkout} holds no compiled library and hides {installed}, which holds one"


def test_an_intentionally_missing_library_causes_no_warning(tmp_path: Path) -> None:
    package = package_in(tmp_path)
    (package / _extension.PURE_MARKER).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = runpy.run_path(str(package / "_extension.py"))
    assert module["missing"] == "left out on purpose: the package was installed with DMM_FAST_PURE=1"


def package_in(folder: Path) -> Path:
    """A package without a library, and its module that looks for one."""
    package = folder / "dmm_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(_extension.__file__, package)
    return package
