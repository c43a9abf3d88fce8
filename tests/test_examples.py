"""The examples run unchanged, from any folder, and leave the files that they name."""

import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pytest
import torch

from dmm_fast.data import chorales, save_npz

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs an example with few steps in an empty folder, and returns the lines that it printed.

    Not in a process of its own, which would take longer to import torch than to run the example.
    """
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run_example(script: str | Path, *arguments: str) -> list[str]:
        path = EXAMPLES / f"{script}.py" if isinstance(script, str) else script
        monkeypatch.setattr("sys.argv", [str(path), "--quick", *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", RuntimeWarning)  # where there is no library, one says so
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]):
        yield run_example
    torch.set_num_threads(threads)
    plt.close("all")


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_leaves_the_files_that_it_names(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, run: Run, name: str
) -> None:
    arguments = []
    if name == "jsb_to_midi":  # which would otherwise download its data
        few = tmp_path_factory.mktemp("data") / "few.npz"
        save_npz(chorales(num_train=10, num_valid=3, num_test=3, num_steps=(30, 40)), few)
        arguments = ["--data", str(few)]
    lines = run(name, *arguments)
    written = sorted(file.name for file in tmp_path.iterdir())
    assert f"{name}.png" in written
    assert sorted(lines[-len(written) :]) == written


def test_without_a_network_the_built_in_chorales_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    music = runpy.run_path(str(EXAMPLES / "jsb_to_midi.py"))["music"]

    def unreachable(*args: object, **options: object) -> Path:
        raise OSError("no route to host")

    monkeypatch.setitem(music.__globals__, "download", unreachable)
    few = chorales(num_train=1, num_valid=1, num_test=1)
    monkeypatch.setitem(music.__globals__, "chorales", lambda: few)
    assert music(None, str(tmp_path)) is few
    assert "no route to host" in capsys.readouterr().out


def test_the_loop_written_for_pyros_example_has_the_losses_of_a_model_of_single_steps(
    tmp_path: Path, run: Run
) -> None:
    (tmp_path / "example.py").write_text("from benchmarks.baseline import BaselineDMM as DMM\n")
    lines = run("pyro_swap", "--example", "example.py")
    difference = next(line for line in lines if line.startswith("largest relative difference"))
    assert float(difference.rpartition(" ")[2]) < 1e-5


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, run: Run) -> None:
    """Its code in one script, with fewer steps and data, and without what Jupyter would show."""
    cells = json.loads((EXAMPLES / "deep_markov_model.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for pattern, fewer in (
        (r"NUM_STEPS = \d+", "NUM_STEPS = 2"),
        (r"num_train=\d+", "4, 3, 3"),
        (r"particles=\d+", "particles=2"),
    ):
        source, found = re.subn(pattern, fewer, source)
        assert found == 1
    script = tmp_path / "notebook.py"
    script.write_text(source)
    assert run(script)[-1] == "continued.mid"
    assert (tmp_path / "continued.mid").exists()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_have_the_bound_of_one(tmp_path: Path, run: Run) -> None:
    """Started by torchrun, with gloo; one of them prints and writes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [*launch, str(EXAMPLES / "multi_gpu.py"), "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = run("multi_gpu"), done.stdout.splitlines()
    assert two[1].startswith("2 process(es)")
    assert (two[0], two[2:]) == (one[0], one[2:])
