"""A kernel with an injected error: the smoke test reports it, and the run continues without the kernel."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pybind11 = pytest.importorskip("pybind11")

ROOT = Path(__file__).resolve().parents[2]
# The kernel uses the inputs of another time step in row 1 at t = 2; the row follows from the output address.
RIGHT = "load_global(turn.from[i])"
ROW = "(turn.to - direction_.out()) / (int64_t{a_.ragged.steps} * a_.units)"
WRONG = f"load_global(turn.from[i] + ({ROW} == 1 && turn.time == 2 ? direction_.operand(i).step : 0))"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an emulator with the faulty kernel, without sanitizers, which take minutes to compile."""
    root = tmp_path_factory.mktemp("planted")
    for folder in ("csrc", "benchmarks/csrc"):
        shutil.copytree(ROOT / folder, root / folder)
    source = root / "csrc" / "cuda" / "rnn_scan_warps.cuh"
    text = source.read_text()
    assert text.count(RIGHT) == 1
    source.write_text(text.replace(RIGHT, WRONG))
    built = root / "build" / "emulator"
    built.mkdir(parents=True)
    module = built / f"dmm_emulator{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = f"-I{sysconfig.get_path('include')} -I{pybind11.get_include()}"
    settings = f"python_includes = {includes}\nmodule = {module}\nsanitize =\n"
    (built / "settings.ninja").write_text(settings)
    ninja = Path(sys.executable).with_name("ninja")
    subprocess.run([ninja, "-f", "csrc/emulator/build.ninja"], cwd=root, env=plain(), check=True)
    return built


def plain(**more: str) -> dict[str, str]:
    """The environment without the sanitizers' run-time of the test process."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | more


def run(planted: Path, out: Path, *what: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", "cpu", "--quick", *what]
    env = plain(PYTHONPATH=str(planted), TRITON_INTERPRET="1")
    ended = subprocess.run(
        [*command, "--plugin", "tests.emulated"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    return ended, json.loads((out / "results.json").read_text())


def test_a_faulty_kernel_is_named_and_replaced_by_triton(planted: Path, tmp_path: Path) -> None:
    ended, results = run(planted, tmp_path / "out", "--only", "smoke", "scans")
    assert ended.returncode == 1
    rows = {row["kernel"]: row for row in results["smoke"]}
    assert rows.pop("exchange_floor")["ok"] is None  # not an op of the emulator
    wrong = {kernel for kernel, row in rows.items() if not row["ok"]}
    assert "rnn_scan forward" in wrong
    assert all(kernel.startswith("rnn_scan") for kernel in wrong)
    bad = rows["rnn_scan forward"]
    assert (bad["backend"], bad["first_bad"]["row"], bad["first_bad"]["t"]) == ("cuda", 1, 2)
    # Steps are computed from the last one back, so later time steps are correct.
    assert max(bad["by_step"][3:]) < 1e-6 < min(bad["by_step"][:3])
    last = ended.stdout.splitlines()[-60:]
    assert any("rnn_scan forward: first bad: row 1, t 2, unit" in line for line in last)

    timed = {(row["case"].split(",")[0], row["impl"]) for row in results["cases"]}
    assert ("rnn_scan", "triton") in timed
    assert ("rnn_scan", "cuda") not in timed
    assert ("combiner_scan", "cuda") in timed
    assert all(row["replaced"] == {"rnn_scan": "triton"} for row in results["cases"])
    stages = {stage["name"]: stage["ok"] for stage in results["stages"]}
    assert stages == {"machine": True, "smoke": False, "scans": True}
