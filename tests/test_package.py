"""``import dmm_fast`` and ``python -m dmm_fast``, with and without the extras."""

import ast
import hashlib
import importlib
import inspect
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dmm_fast
from dmm_fast.cli import EXTRAS
from dmm_fast.data import load

MODULES = ("data", "distributions", "infer", "music", "nn", "ops", "optim", "training")

# Dependencies of Pyro are blocked after importing it. The download is a local file.
WITHOUT_EXTRAS = """
import sys
folder, blob, *blocked = sys.argv[1:]
sys.modules["triton"] = None
import pyro
sys.modules.update(dict.fromkeys(blocked))

import dmm_fast
names = ("data", "infer", "music", "optim", "training")
imported = [name for name in names if f"dmm_fast.{name}" in sys.modules]
print(*imported, file=sys.stderr)

from dmm_fast.cli import main
from importlib import import_module
module = import_module("dmm_fast.data._download")
module.URL, module.BLOBS["jsb_chorales"] = f"file://{folder}/{{name}}.pickle", blob
assert main(["info", "--json"]) == 0
assert main(["download", "jsb_chorales", f"{folder}/data"]) == 0
assert main(["evaluate", folder]) == 2
"""


def test_info_and_download_need_no_extras(tmp_path: Path) -> None:
    content = pickle.dumps({split: [[(60, 64), (62,)]] for split in ("train", "valid", "test")}, 2)
    (tmp_path / "jsb_chorales.pickle").write_bytes(content)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    quiet = ("-W", "ignore::RuntimeWarning")  # where there is no library, that is told too
    command = [sys.executable, *quiet, "-c", WITHOUT_EXTRAS, str(tmp_path), blob, *EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed, _, path = done.stdout.rstrip().rpartition("\n")
    info = json.loads(printed)
    assert info["dmm_fast"] == dmm_fast.__version__
    assert info["missing"]["triton"].startswith("triton is not installed")
    assert path == str(tmp_path / "data" / "jsb_chorales.pickle")
    assert len(load(path).train) == 1
    imported, *complaints = done.stderr.splitlines()
    # The plans of the CUDA kernels are kept in files, which `data` writes.
    assert imported.split() == ["data"]
    assert complaints == ["dmm-fast: safetensors is not installed: pip install 'dmm-fast[cli]'"]


def test_modules_and_classes_are_imported_on_use() -> None:
    for name in MODULES:
        assert getattr(dmm_fast, name) is importlib.import_module(f"dmm_fast.{name}")
    assert dmm_fast.GraphedSVI is dmm_fast.infer.GraphedSVI
    assert dmm_fast.ClippedAdam is dmm_fast.optim.ClippedAdam
    assert dmm_fast.PyroClippedAdam is dmm_fast.optim.PyroClippedAdam
    assert {*MODULES, *dmm_fast.__all__} <= {*dir(dmm_fast)}


@pytest.mark.parametrize("name", ["", *(f".{name}" for name in MODULES)])
def test_all_listed_names_exist(name: str) -> None:
    module = importlib.import_module(f"dmm_fast{name}")
    assert all(hasattr(module, each) for each in dir(module))
    assert {*module.__all__} <= {*dir(module)}


def test_autotuning_is_on_or_off() -> None:
    with pytest.raises(TypeError, match=r"^on: expected bool, got str 'yes'$"):
        dmm_fast.autotune("yes")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'dmm_fast' has no attribute 'nonsense'$"):
        _ = dmm_fast.nonsense


@pytest.mark.parametrize("package", [dmm_fast, dmm_fast.training])
def test_type_checkers_see_lazy_imports(package: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(package))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in branch.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in imports for alias in node.names} == {*package._HOMES}


def test_python_m_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dmm_fast", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("dmm_fast", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dmm-fast {dmm_fast.__version__}\n"
