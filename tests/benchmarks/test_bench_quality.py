"""The benchmark of quality: runs are trained, evaluated, resumed, skipped and listed."""

import json
import os
import signal

import pytest
import torch

from benchmarks.quality import jobs
from benchmarks.quality.journal import Journal
from tests.helpers_quality import call, two_sets
from tests.helpers_train import assert_same_run, stop_at

FIELDS = {
    *("suite", "name", "data", "fingerprint", "preset", "seed", "overrides", "settings", "parameters"),
    *("meta", "machines", "ended", "limits", "seconds", "epochs", "updates", "best", "bound", "nll", "curve"),
}


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


def written(place):
    return {path.name: json.loads(path.read_text()) for path in sorted((place / "out").glob("*.json"))}


def only(place):
    (results,) = written(place).values()
    return results


def without_times(results):
    curve = [
        {name: value for name, value in point.items() if name != "seconds"} for point in results["curve"]
    ]
    best = {name: value for name, value in results["best"].items() if name != "seconds"}
    left = {name: results[name] for name in FIELDS - {"meta", "machines", "seconds"}}
    return left | {"curve": curve, "best": best}


# --- runs -----------------------------------------------------------------------------------------------


def test_each_data_set_preset_and_seed_is_a_run_with_a_file(data, tmp_path, capsys):
    presets = ("krishnan", "aug-nade")
    assert call(tmp_path, data, "--seeds", "3", presets=presets) == 0
    assert call(tmp_path, data / "other.npz", "--seeds", "0") == 0
    results = {(r["data"], r["preset"], r["seed"]): r for r in written(tmp_path).values()}
    assert results.keys() == {
        ("other", "krishnan", 0),
        *((name, preset, 3) for name in ("Little_One", "other") for preset in presets),
    }
    one = results["Little_One", "aug-nade", 3]
    assert set(one) == FIELDS
    assert one["name"].startswith("little_one-aug-nade-3-")
    assert one["settings"]["emission"] == "nade"
    assert one["settings"]["rnn_dim"] == one["overrides"]["rnn_dim"] == 6
    assert (one["ended"], one["epochs"], one["updates"]) == ("all epochs", 3, 6)
    assert [point["epoch"] for point in one["curve"]] == [2, 3]  # not the first
    assert 0 < one["curve"][0]["seconds"] <= one["curve"][1]["seconds"] <= one["seconds"]
    assert one["best"]["valid"] == min(point["valid"] for point in one["curve"])
    assert one["machines"] == [{"device": one["meta"]["device"], "threads": one["meta"]["threads"]}]
    assert (one["bound"]["draws"], one["nll"]["draws"]) == (10, 6)
    for average in ("total_over_total", "mean_of_averages"):
        assert 0 < one["nll"]["test"][average] < one["bound"]["test"][average]
        assert one["bound"]["valid"][average] > 0
    assert one["nll"].keys() == {"draws", "test"}  # models are chosen by their bounds
    # No path of the machine is in the file.
    assert str(tmp_path) not in json.dumps(one)
    assert str(data) not in json.dumps(one)


def test_a_finished_run_is_skipped_even_without_its_folder(data, tmp_path, capsys):
    source = data / "other.npz"
    assert call(tmp_path, source) == 0
    (path,) = (tmp_path / "out").iterdir()
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert call(tmp_path, source) == 0
    (folder,) = (tmp_path / "work").iterdir()
    folder.rename(tmp_path / "elsewhere")
    assert call(tmp_path, source) == 0
    assert capsys.readouterr().out.count("; skipped") == 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    # Other draws need the parameters, which are not trained again without being asked.
    for more in (("--particles", "7"), ("--evaluate-only", "--particles", "7"), ("--epochs", "4")):
        assert call(tmp_path, source, *more, epochs=None if "--epochs" in more else "3") == 1
        assert "expected the folder of the run" in capsys.readouterr().err
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_run_in_many_sessions_equals_an_uninterrupted_one(data, tmp_path):
    source = data / "other.npz"
    assert call(tmp_path / "once", source) == 0
    sessions = 0
    while not written(tmp_path / "many") or only(tmp_path / "many")["nll"]["test"] is None:
        assert call(tmp_path / "many", source, "--seconds", "1e-9") == 0  # a step, or a group of sequences
        sessions += 1
        (folder,) = (tmp_path / "many" / "work").iterdir()
        # The last of six steps ends the run, whose time is over too.
        assert (Journal(folder).ended == "all epochs") == (sessions >= 6)
    assert sessions > 5
    (once,), (many,) = ((tmp_path / name / "work").iterdir() for name in ("once", "many"))
    assert_same_run(once, many)
    assert without_times(only(tmp_path / "once")) == without_times(only(tmp_path / "many"))
    seconds = [line["seconds"] for line in Journal(many).lines]
    assert seconds == sorted(seconds)
    assert len(only(tmp_path / "many")["machines"]) > 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_everything_to_the_next_call(data, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), number))
        assert call(tmp_path, data, "--seeds", "0", "1") == 130
    assert not written(tmp_path)
    (folder,) = (tmp_path / "work").iterdir()  # the others were not begun
    assert (Journal(folder).steps, Journal(folder).ended) == (3, "signal")
    assert call(tmp_path, data, "--seeds", "0", "1") == 0
    assert {r["ended"] for r in written(tmp_path).values()} == {"all epochs"}
    assert len(written(tmp_path)) == 4


def test_a_signal_in_the_last_step_leaves_only_the_evaluation(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert call(tmp_path, data, "--seeds", "0", "1") == 130
    (folder,) = (tmp_path / "work").iterdir()  # the others were not begun
    assert (Journal(folder).steps, Journal(folder).ended) == (6, "all epochs")
    assert only(tmp_path)["nll"]["test"] is None
    assert call(tmp_path, data, "--seeds", "0", "1", "--list") == 0


def test_a_run_that_its_time_ended_has_a_bound_and_on_request_an_nll(data, tmp_path):
    source = data / "other.npz"
    while not written(tmp_path):
        assert call(tmp_path, source, "--seconds", "0.001", epochs="40") == 0
    results = only(tmp_path)
    assert (results["ended"], results["nll"]) == ("time budget", {"draws": 6, "test": None})
    assert results["bound"]["test"]["total_over_total"] > 0
    trained = results["updates"]
    assert call(tmp_path, source, "--evaluate-only", epochs="40") == 0
    results = only(tmp_path)
    assert (results["updates"], results["ended"]) == (trained, "time budget")
    assert results["nll"]["test"]["mean_of_averages"] > 0
    assert call(tmp_path, source, "--seconds", "0.001", epochs="40") == 0
    assert only(tmp_path)["updates"] > trained


def test_early_stopping_ends_a_run_and_a_higher_patience_continues_it(data, tmp_path):
    still = ("--set", "learning_rate=0", "evaluation_particles=2")
    assert call(tmp_path, data / "other.npz", *still, "--set", "patience=1", epochs="9") == 0
    results = only(tmp_path)
    assert (results["ended"], results["epochs"], results["limits"]) == ("patience", 3, [9, 1])
    assert (results["best"]["epochs"], results["best"]["updates"]) == (2, 4)
    assert results["best"]["seconds"] < results["seconds"]
    assert all(point["valid_mean"] != point["valid"] for point in results["curve"])
    assert results["nll"]["test"] is not None
    before = (tmp_path / "out").iterdir().__next__().read_bytes()
    assert call(tmp_path, data / "other.npz", *still, "--set", "patience=1", epochs="9") == 0
    assert (tmp_path / "out").iterdir().__next__().read_bytes() == before
    assert call(tmp_path, data / "other.npz", *still, "--set", "patience=3", epochs="9") == 0
    assert (only(tmp_path)["ended"], only(tmp_path)["epochs"]) == ("patience", 5)


def test_the_list_shows_what_is_done_and_what_is_missing(data, tmp_path, capsys):
    assert call(tmp_path, data / "other.npz") == 0
    while not written(tmp_path / "open"):
        call(tmp_path / "open", data / "other.npz", "--seconds", "1e-9", epochs="9")
    best = only(tmp_path)["best"]["valid"]
    capsys.readouterr()
    assert call(tmp_path, data, "--seeds", "0", "1", "--list") == 0
    missing, other_missing, done, also_missing = capsys.readouterr().out.splitlines()
    assert all(line.endswith(": missing") for line in (missing, other_missing, also_missing))
    assert done.startswith("other-krishnan-0-")
    assert done.endswith(f": done; 3 epochs, 0.00 h, best validation bound {best:.3f}")
    assert call(tmp_path / "open", data / "other.npz", "--list", epochs="9") == 0
    assert "open (time budget); 2 epochs" in capsys.readouterr().out
    assert len(written(tmp_path)) == 1  # nothing was trained


def test_a_run_that_fails_is_told_and_the_others_are_made(data, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 5, lambda: float("nan"))
    assert call(tmp_path, data) == 1
    failed, done = written(tmp_path).values()
    assert failed["ended"] == "failed: loss: expected a finite number, got nan in epoch 2, step 0"
    assert failed["bound"]["test"]["total_over_total"] > 0
    assert done["ended"] == "all epochs"
    assert "failed: loss: expected a finite number" in capsys.readouterr().err
    assert call(tmp_path, data) == 0
    assert {r["ended"] for r in written(tmp_path).values()} == {"all epochs"}


class Process:
    """A process that is alive at the first look at it, or until it is ended, and then has done its task."""

    alive, most, made = 0, 0, []

    def __init__(self, target, args):
        # A spawned process does not import the __main__ of a package.
        assert not target.__module__.endswith("__main__")
        self.target, self.args, self.looks, self.exitcode = target, args, 0, None

    def start(self):
        Process.alive += 1
        Process.most = max(Process.most, Process.alive)
        Process.made.append(self)

    def is_alive(self):
        self.looks += 1
        if self.looks > 1:
            self.join()
        return self.exitcode is None

    def join(self):
        if self.exitcode is None:
            Process.alive -= 1
            try:
                self.target(*self.args)
            except SystemExit as ended:
                self.exitcode = ended.code

    def terminate(self):
        self.exitcode, Process.alive = 130, Process.alive - 1


@pytest.fixture
def processes(monkeypatch):
    context = type("Context", (), {"Process": Process})
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(jobs, "LOOK", 0.0)
    monkeypatch.setattr(Process, "alive", 0)
    monkeypatch.setattr(Process, "most", 0)
    monkeypatch.setattr(Process, "made", [])


def test_as_many_processes_as_asked_for_make_the_runs(data, tmp_path, monkeypatch, processes):
    stop_at(monkeypatch, 5, lambda: float("nan"))
    assert call(tmp_path, data, "--seeds", "0", "1", "--jobs", "3") == 1  # one of them failed
    assert (len(Process.made), Process.most, Process.alive) == (4, 3, 0)
    assert sorted(process.exitcode for process in Process.made) == [0, 0, 0, 1]
    assert len(written(tmp_path)) == 4


def test_a_signal_ends_all_processes(data, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(Process, "join", lambda self: None)
    monkeypatch.setattr(
        Process, "is_alive", lambda it: os.kill(os.getpid(), signal.SIGTERM) or it.exitcode is None
    )
    assert call(tmp_path, data, "--seeds", "0", "1", "--jobs", "2") == 130
    assert [process.exitcode for process in Process.made] == [130, 130]


def test_another_file_in_the_place_of_results_is_kept(data, tmp_path, capsys):
    source = data / "other.npz"
    assert call(tmp_path, source) == 0
    (path,) = (tmp_path / "out").iterdir()
    path.write_text("{")
    assert call(tmp_path, source) == 1
    assert "expected the results of other-krishnan-0-" in capsys.readouterr().err
    assert path.read_text() == "{"
