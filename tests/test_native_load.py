"""A library that was built and does not load is told; one that was never built is not."""

import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import dmm_fast
from dmm_fast import native

IMPORT = """
import dmm_fast, torch
print(dmm_fast.info()["missing"]["cpp"])
print(dmm_fast.info()["instruction_set"])
print(dmm_fast.GatedTransition(2, 3)(torch.zeros(2))[0].shape)
"""


def test_a_library_that_does_not_load_is_told_once_and_eager_computes(tmp_path: Path) -> None:
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
    assert f"{why}. Build it again" in told
    assert "pip install --no-build-isolation" in told
    assert instruction_set == "None"
    assert shape == "torch.Size([2])"


def test_a_library_that_was_never_built_is_no_warning(tmp_path: Path) -> None:
    alone = shutil.copy(native.__file__, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = runpy.run_path(alone)
    assert module["missing"].startswith("none was built")
    assert module["instruction_set"]() is None
    module["raise_on_hang"]()
