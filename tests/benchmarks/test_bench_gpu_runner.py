"""The runner of the GPU stages: stages that fail, hang, crash or disagree do not affect the others."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from types import ModuleType

import pytest
import torch

from benchmarks import ROOT
from benchmarks.gpu import runner, triton_cache
from benchmarks.gpu import stage as stage_module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.record import Record
from benchmarks.gpu.runner import Options
from tests.benchmarks import fake_stages


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run stages of ``fake_stages`` by their names, with their time budgets in seconds."""
    real = runner._command

    def command(options):
        return [sys.executable, "-u", "-m", "tests.benchmarks.fake_stages", real(options)[-1]]

    monkeypatch.setattr(runner, "_command", command)

    def run_fakes(*names, seconds=25.0, budget=600.0, out="out"):
        stages = dict.fromkeys(names, seconds)
        return runner.run_stages(budget, Options(tmp_path / out, stages, device="cpu"))

    run_fakes.folder = tmp_path
    return run_fakes


def of(results, name):
    (stage,) = [stage for stage in results["stages"] if stage["name"] == name]
    return stage


def impls(results):
    return [row["impl"] for row in results["cases"]]


def test_a_unit_that_raises_is_recorded_and_the_next_begins(run):
    results = run("fails", "well")
    assert impls(results) == ["first", "last"]
    stage = of(results, "fails")
    assert not stage["ok"]
    assert stage["error"].startswith("bad: ")
    assert stage["error"].endswith("ZeroDivisionError: division by zero")
    assert [unit["unit"] for unit in stage["failures"]] == ["bad"]
    assert of(results, "well")["ok"]


def test_a_unit_that_hangs_is_ended_and_the_next_begins_in_a_new_process(run, tmp_path):
    results = run("hangs")
    assert impls(results) == ["first", "last"]
    assert "bad: not finished within 1 s" in of(results, "hangs")["error"]
    # The traceback of the hang.
    assert "fake_stages.py" in (tmp_path / "out" / "stages.log").read_text()


def test_a_unit_that_breaks_the_device_ends_its_process(run):
    results = run("breaks")
    assert impls(results) == ["first", "last"]
    assert [unit["unit"] for unit in of(results, "breaks")["failures"]] == ["bad"]


def test_a_hang_fails_the_unit_whose_kernel_recorded_it(run):
    (failure,) = of(run("leaves_a_hang"), "leaves_a_hang")["failures"]
    assert failure["unit"] == "second"
    assert failure["error"].endswith("block 3 timed out")


def test_the_time_of_a_stage_starts_after_its_imports(run, monkeypatch):
    real = stage_module.importlib.import_module

    def slow(name):
        time.sleep(1.5)
        return real(name)

    fake = ModuleType("benchmarks.gpu.stages.fake")
    fake.units = fake_stages.slow_to_import
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setitem(runner.STAGES, "slow", ("fake.units", 1.0))
    monkeypatch.setattr(stage_module.importlib, "import_module", slow)
    options = Options(run.folder, {"slow": 1.0}, device="cpu", end=time.monotonic() + 60.0)
    stage_module.run_stage("slow", options)
    assert options.record.found("detail")[0]["left"] > 0.5


def test_a_unit_that_requests_a_new_process_has_not_failed(run):
    stage = of(run("needs_another"), "needs_another")
    assert stage["ok"]
    assert stage["detail"]["first"] != stage["detail"]["last"]


def test_units_share_a_process_until_one_breaks_it(run):
    results = run("shares", "shares_too", "breaks", "well")
    processes = [of(results, name)["detail"]["process"] for name in ("shares", "shares_too")]
    assert processes[0] == processes[1]


def test_a_stage_that_cannot_list_its_units_fails_alone(run):
    results = run("cannot_be_listed", "well")
    assert of(results, "cannot_be_listed")["error"].endswith("ImportError: no such library")
    assert of(results, "well")["ok"]


def test_a_worker_that_exits_fails_only_its_stage(run):
    results = run("ends_badly", "well")
    error = of(results, "ends_badly")["error"].splitlines()
    assert error[-1] == "exit status 3; last line: about to end"
    assert of(results, "well")["ok"]


def test_a_unit_that_kills_its_process_is_recorded_and_the_next_begins(run):
    results = run("dies", "well")
    assert impls(results) == ["first", "last"]
    (failure,) = of(results, "dies")["failures"]
    assert failure["unit"] == "bad"
    assert failure["error"].splitlines()[-1].startswith("killed by SIGABRT")
    assert of(results, "well")["ok"]


def test_a_hanging_process_is_killed(run, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.1)
    results = run("never_begins", "well", seconds=8.0, budget=8.0)
    stage = of(results, "never_begins")
    assert not stage["ok"]
    assert stage["error"].splitlines()[-1] == "timed out; last line: about to hang"
    assert of(results, "well")["error"] == "not started: no time was left"


def test_running_out_of_time_is_no_failure_and_remaining_units_are_recorded(run):
    results = run("runs_out", seconds=8.0)
    stage = of(results, "runs_out")
    assert stage["ok"]
    assert impls(results) == ["first"]
    assert [row["case"] for row in results["not_run"]] == ["long", "last"]


def test_a_required_unit_may_overrun_its_stage(run):
    results = run("overruns", seconds=1.0)
    assert impls(results) == ["needed"]
    assert of(results, "overruns")["ok"]
    assert [row["case"] for row in results["not_run"]] == ["last"]


def test_an_error_beyond_its_bound_fails_the_stage(run):
    results = run("disagrees")
    assert [row["ok"] for row in results["correctness"]] == [True, False]
    assert of(results, "disagrees")["error"] == "1 beyond their bound, the first f of b"


def test_results_have_their_documented_fields(run, tmp_path):
    results = run("well", "fails")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    lists = {"smoke", "correctness", "cases", "profiles", "not_run"}
    assert set(results) == {"suite", "meta", "stages", *lists}
    assert results["meta"] == {"commit": "abc"}
    for stage in results["stages"]:
        assert set(stage) == {"name", "ok", "seconds", "error", "failures", "detail"}
    assert of(results, "well")["detail"] == {"seen": ["cpu", False, True]}
    assert of(results, "well")["error"] is None
    files = ["results.json", "rows.jsonl", "stages.log"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files


def test_results_are_written_after_each_unit(run, tmp_path):
    results = run("reads_results")
    assert of(results, "reads_results")["detail"]["there"] == ["first"]


def test_refuses_the_folder_of_an_old_run(run):
    run("well")
    with pytest.raises(FileExistsError, match="without results"):
        run("well")


def test_unused_time_goes_to_later_stages():
    seconds = {"a": 10.0, "b": 30.0, "c": 60.0}
    assert runner.share("a", seconds, left=50.0) == 5.0
    assert runner.share("b", seconds, left=45.0) == 15.0
    assert runner.share("b", seconds, left=500.0) == 30
    assert runner.share("c", seconds, left=45.0) == 45.0
    assert runner.share("c", seconds, left=500.0) == 500.0
    assert runner.share("c", seconds, left=0.0) == 0.0
    assert runner.share("a", {"a": 0.0}, left=5.0) == 0.0


@pytest.mark.parametrize("preset", ["first", "second"])
def test_presets_fit_their_budget(preset):
    stages = runner.PRESETS[preset]
    assert sum(stages.values()) <= runner.BUDGET == 300
    assert set(stages) <= set(runner.STAGES)
    # No stage compiles for minutes or runs a sanitizer.
    assert not {"peers", "sizes", "rowwise", "roofline"} & set(stages)
    # Compilation comes before the stages that need it, and the last stage gets the remaining time.
    assert list(stages)[:3] == ["machine", "smoke", "kernels"]
    assert list(stages)[-1] == "tests"


def test_stages_without_time_are_reported(run):
    stage = of(run("well", budget=0.0), "well")
    assert stage["error"] == "not started: no time was left"


def test_an_incomplete_line_is_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert Record(path).everything() == []
    path.write_text('{"kind": "cases", "impl": "a"}\n{"kind": "cas')
    assert Record(path).everything() == [{"kind": "cases", "impl": "a"}]


def test_results_name_the_replacements_of_failed_kernels(tmp_path):
    record = Record(tmp_path / "rows.jsonl")
    record.case("s", "c", "i", {"median_ms": 1.0})
    record.replaced["rnn_scan"] = "triton"
    record.case("s", "c", "i", {"median_ms": 1.0})
    record.not_run("c", "j", "why")
    record.detail(seen=1)
    before, after = record.found("cases")
    assert "replaced" not in before
    assert after["replaced"] == record.found("not_run")[0]["replaced"] == {"rnn_scan": "triton"}
    assert record.found("detail") == [{"seen": 1}]


def test_compiled_triton_kernels_are_reused_in_the_next_run(run, tmp_path):
    first = run("compiles")
    assert of(first, "compiles")["detail"]["cached"] == []
    packed = tmp_path / "out" / triton_cache.ARCHIVE
    with tarfile.open(packed) as file:
        assert file.getnames() == ["key/kernel.cubin"]
    stages = {"compiles": 25.0}
    options = Options(tmp_path / "more", stages, device="cpu", triton_cache=str(packed))
    assert of(runner.run_stages(60.0, options), "compiles")["detail"]["cached"] == ["key"]


NO_FOLDER = "--out: expected a folder without earlier results, got"
NO_DATA = "--data: expected a file, or a folder holding JSB_Chorales.mat, got"
BAD_ARGUMENTS = {
    "--only: 'nothing'": ["--only", "nothing"],
    "one of the arguments --preset --only --smoke is required": [],
    "not allowed with argument --smoke": ["--smoke", "--preset", "first"],
    f"{NO_FOLDER} ''": ["--smoke", "--out", ""],
    f"{NO_FOLDER} 'a.file'": ["--smoke", "--out", "a.file"],
    f"{NO_FOLDER} 'old'": ["--smoke", "--out", "old"],
    f"{NO_DATA} nowhere": ["--smoke", "--data", "nowhere"],
    f"{NO_DATA} old": ["--smoke", "--data", "old"],
    "--triton-cache: expected the triton-cache.tar.xz": ["--smoke", "--triton-cache", "a.file"],
    "--budget: expected a number of seconds, got nan": ["--smoke", "--budget", "nan"],
    "--device: expected a GPU that torch sees, got torch": ["--smoke"],
}


@pytest.mark.parametrize("told", BAD_ARGUMENTS)
def test_bad_arguments_are_reported_and_nothing_is_written(told, tmp_path, monkeypatch, capsys):
    if told.startswith("--device") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").write_text("no archive")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rows.jsonl").touch()
    with pytest.raises(SystemExit):
        main(["--out", "new", *BAD_ARGUMENTS[told]])
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(part in error for part in told.split(": ", 1))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_workers_and_keeps_the_findings(tmp_path, how):
    out = tmp_path / "out"
    program = (
        "import sys; from benchmarks.gpu import __main__, runner; from pathlib import Path\n"
        "runner._command = lambda options: [sys.executable, '-c', 'import os, time; "
        f'open("{tmp_path}/pid", "w").write(str(os.getpid())); time.sleep(100)'
        "']\n"
        f"sys.exit(__main__.main(['--smoke', '--device', 'cpu', '--out', '{out}']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    pid = tmp_path / "pid"
    while not (pid.is_file() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    stages = json.loads((out / "results.json").read_text())["stages"]
    assert [stage["error"] for stage in stages] == ["not started: no time was left"] * 2
    assert not (out / "triton-cache").exists()
