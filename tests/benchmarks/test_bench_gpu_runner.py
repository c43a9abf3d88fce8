"""The GPU suite's stages: one that fails, hangs, dies or disagrees is no loss to the others."""

import json
import sys

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.record import read
from benchmarks.gpu.runner import Options


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run stages of ``fake_stages`` by their names, each with so many seconds."""
    real = runner._command

    def command(name, *args):
        return [sys.executable, "-u", "-m", "tests.benchmarks.fake_stages", name, *real(name, *args)[5:]]

    monkeypatch.setattr(runner, "_command", command)

    def run_fakes(*names, seconds=25.0, budget=600.0, out="out", after=None):
        monkeypatch.setattr(runner, "STAGES", dict.fromkeys(names, seconds))
        return runner.run_stages(list(names), budget, Options(tmp_path / out, device="cpu", after=after))

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
    assert "bad: no end within 1 s" in of(results, "hangs")["error"]
    # Where it hung.
    assert "fake_stages.py" in (tmp_path / "out" / "stages.log").read_text()


def test_what_a_unit_has_broken_ends_with_its_process(run):
    results = run("breaks")
    assert impls(results) == ["first", "last"]
    assert [unit["unit"] for unit in of(results, "breaks")["failures"]] == ["bad"]


def test_a_new_process_that_a_unit_asks_for_is_no_failure(run):
    stage = of(run("needs_another"), "needs_another")
    assert stage["ok"]
    assert stage["detail"]["skipped"] == "1"


def test_a_unit_that_kills_its_process_is_recorded_and_the_next_begins(run):
    results = run("dies", "well")
    assert impls(results) == ["first", "last"]
    (failure,) = of(results, "dies")["failures"]
    assert failure["unit"] == "bad"
    assert failure["error"].startswith("exit status -6")
    assert of(results, "well")["ok"]


def test_a_process_that_does_not_end_is_ended(run, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.1)
    stage = of(run("never_begins", "well", seconds=8.0), "never_begins")
    assert not stage["ok"]
    assert stage["seconds"] < 60
    assert stage["error"].splitlines()[0] == "no end within 8 s"
    assert stage["error"].splitlines()[-1] == "about to hang"


def test_the_end_of_the_time_is_no_failure_and_what_is_left_is_named(run):
    results = run("runs_out", seconds=8.0)
    stage = of(results, "runs_out")
    assert stage["ok"]
    assert impls(results) == ["first"]
    assert [row["case"] for row in results["not_run"]] == ["long", "last"]


def test_what_is_beyond_its_bound_fails_the_stage(run):
    results = run("disagrees")
    assert [row["ok"] for row in results["correctness"]] == [True, False]
    assert of(results, "disagrees")["error"] == "1 beyond their bound, the first f of b"


def test_a_run_after_another_adds_what_that_lacks(run, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "MACHINE", "well")
    first = run("well", "fails")
    path = tmp_path / "out" / "results.json"
    both = run("well", "disagrees", out="more", after=path)
    assert [stage["name"] for stage in both["stages"]] == ["fails", "well", "disagrees"]
    assert both["cases"] == first["cases"]
    assert of(both, "fails") == of(first, "fails")
    assert json.loads((tmp_path / "more" / "results.json").read_text()) == both
    with pytest.raises(ValueError, match="after: expected a run without fails, got one with it"):
        run("well", "fails", out="third", after=path)


def test_a_run_after_one_of_another_commit_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "MACHINE", "well")
    run("well")
    path = tmp_path / "out" / "results.json"
    path.write_text(path.read_text().replace('"abc"', '"abd"'))
    with pytest.raises(ValueError, match="after: expected a run with commit abc, as now, got one with abd"):
        run("well", out="more", after=path)


def test_results_have_the_form_that_is_promised(run, tmp_path):
    results = run("well", "fails")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert set(results) == {"suite", "meta", "correctness", "cases", "profiles", "not_run", "stages"}
    assert results["meta"] == {"commit": "abc"}
    for stage in results["stages"]:
        assert set(stage) == {"name", "ok", "seconds", "error", "failures", "detail"}
    assert of(results, "well")["detail"] == {"seen": ["cpu", False, True]}
    assert of(results, "well")["error"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "stages.log"]


def test_results_are_there_after_each_stage(run, monkeypatch, tmp_path):
    written = []
    real = runner.write

    def write(results, path):
        real(results, path)
        written.append(len(json.loads(path.read_text())["stages"]))

    monkeypatch.setattr(runner, "write", write)
    run("well", "fails")
    assert written == [1, 2]


def test_never_mixes_with_an_old_run(run):
    run("well")
    with pytest.raises(FileExistsError, match=r"without results\.json"):
        run("well")


def test_what_a_stage_leaves_over_goes_to_those_after_it(monkeypatch):
    monkeypatch.setattr(runner, "STAGES", {"a": 10, "b": 30, "c": 60})
    names = ["a", "b", "c"]
    assert runner.share("a", names, left=50.0) == 5.0
    assert runner.share("b", names, left=45.0) == 15.0
    assert runner.share("b", names, left=500.0) == 30
    assert runner.share("c", names, left=45.0) == 45.0
    assert runner.share("c", names, left=0.0) == 0.0


def test_no_time_left_is_said(run):
    stage = of(run("well", budget=0.0), "well")
    assert stage["error"] == "no time left, 0 units done"


def test_a_line_that_was_not_written_whole_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read(path) == []
    path.write_text('{"kind": "cases", "impl": "a"}\n{"kind": "cas')
    assert read(path) == [{"kind": "cases", "impl": "a"}]


def test_the_command_knows_the_stages(capsys):
    from benchmarks.gpu.__main__ import main

    with pytest.raises(SystemExit):
        main(["--out", "x", "--only", "nothing"])
    assert "rowwise" in capsys.readouterr().err
