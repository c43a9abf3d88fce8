"""The examples run as they are, from anywhere, and leave the picture that they name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_draws_its_picture(tmp_path: Path, path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    quiet = ("-W", "error", "-W", "ignore::RuntimeWarning")  # where there is no library, that is told too
    command = [sys.executable, *quiet, str(path), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{path.stem}.png"
    assert [file.name for file in tmp_path.iterdir()] == [f"{path.stem}.png"]
