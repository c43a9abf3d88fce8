"""Warm-up compile on a GPU: jobs in processes, the cache of their kernels, and the tile sweep."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

import pytest

from benchmarks.cases import QUICK_SIZES
from benchmarks.gpu import pool, triton_cache
from benchmarks.gpu.pool import Ended, Job
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.gpu.stages import guides, kernels, tiles
from benchmarks.implementations import OURS
from benchmarks.pyro_stepper import PyroStepper
from benchmarks.timing import Samples
from dmm_fast.triton.tuning import Tiles

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, device="cpu", quick=True, end=time.monotonic() + 60.0)


@pytest.fixture
def in_threads(monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


def launched(what, folder):
    command = [sys.executable, "-m", "tests.benchmarks.launched", what, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


# --- jobs ---------------------------------------------------------------------------------------------------


def test_jobs_run_in_order_and_failures_are_reported_by_name(stage, in_threads, capsys):
    ran = []
    jobs = [
        Job("one", lambda: ran.append(1) or 7),
        Job("two", lambda: 1 / 0),
        Job("three", lambda: ran.append(3)),
    ]
    one, two, three = pool.run_all(stage, jobs)
    assert ran == [1, 3]
    assert (one, three) == (Ended("one", 7, None), Ended("three", None, None))
    assert two.error.startswith("two: Traceback")
    assert two.error.endswith("ZeroDivisionError: division by zero")
    assert capsys.readouterr().out == "called one\ncalled three\n"


def test_jobs_without_time_are_recorded_as_not_run(stage, in_threads):
    jobs = [Job("long", partial(time.sleep, 0.3)), Job("late", lambda: None)]
    assert [each.name for each in pool.run_all(stage, jobs, seconds=0.1)] == ["long"]
    (row,) = stage.record.found("not_run")
    assert (row["case"], row["why"]) == ("late", "the stage ran out of time")


def test_processes_use_the_replacements_of_failed_kernels(stage):
    stage.record.replaced["emitter"] = "reference"
    (ended,) = pool.run_all(stage, [Job("asks", asks)], told)
    assert ended.value == ["emitter by reference", "prepared on cpu"]


def told(stage):
    sys.modules[__name__].prepared = f"prepared on {stage.device}"


def asks():
    from dmm_fast.ops import _backends

    (choice,) = _backends._choices.held
    return [f"{next(iter(choice._ops))} by {choice._name}", sys.modules[__name__].prepared]


def test_ops_are_compiled_before_steps_and_those_of_most_kernels_first(stage):
    full = Stage(stage.out, device="cpu", end=stage.end)
    names = [job.name for job in kernels.jobs(full)]
    ops, steps = names[: names.index("guide st-r, 2 flows")], names[names.index("guide st-r, 2 flows") :]
    assert {name.split(",")[0] for name in ops[:2]} == {"flow_scan", "transition_kl"}
    assert steps[1] == "guide st-r, 1 flows"
    assert {f"guide {run.name}" for run in guides.RUNS} < set(steps)
    assert {f"step of {one.name}" for one in OURS} < set(steps)
    assert {"step of dmm_fast, graphed", "step of dmm_fast, capturable"} < set(steps)
    assert [job.name for job in kernels.jobs(stage)] == ops
    stage.record.add("smoke", {"op": "emitter", "backend": "cpp", "ok": False})
    assert [name for name in ops if name != "emitter, cpp"] == [job.name for job in kernels.jobs(stage)]


def test_a_failed_job_fails_the_stage(stage, monkeypatch):
    monkeypatch.setattr(
        kernels, "run_all", lambda stage, jobs: [Ended("a", None, None), Ended("b", None, "b: off")]
    )
    with pytest.raises(RuntimeError, match="b: off"):
        kernels.compile_all(stage)


def test_the_steps_of_a_guide_equal_those_of_its_stage(stage, monkeypatch):
    """The job takes the checks of its stage, and one step of each implementation compared there."""
    stepped, compared = [], []

    def run(stepper):
        stepped.append((stepper.case.name, stepper.replays, type(stepper._svi).__name__))
        return 0.0

    monkeypatch.setattr(PyroStepper, "run", run)
    monkeypatch.setattr(guides, "checked", lambda *given: compared.append(given) or [])
    jobs = {job.name: job for job in kernels.step_jobs(stage)}
    jobs["guide st-r, 1 flows"].run()
    case = "SVI step, B=4, T=6, all full (quick), st-r, 1 flows"
    assert stepped == [(case, False, "SVI"), (case, False, "GraphedSVI")]
    assert [(run.name, sizes) for run, _, _, sizes in compared] == [("st-r, 1 flows", QUICK_SIZES)]
    jobs["step of dmm_fast, SequenceELBO"].run()
    assert stepped[2:] == [("SVI step, B=4, T=6, all full (quick)", False, "SVI")]


def test_steps_of_a_guide_and_of_an_implementation_run(stage):
    jobs = {job.name: job for job in kernels.step_jobs(stage)}
    assert pool.attempt("cpu", jobs["guide mf-lr"]).error is None
    assert pool.attempt("cpu", jobs["step of dmm_fast, graphed"]).error is None


# --- the cache ----------------------------------------------------------------------------------------------


@with_triton
def test_an_archived_cache_is_used_in_another_folder(tmp_path):
    one, other, archive = tmp_path / "one", tmp_path / "other", tmp_path / "a.tar.xz"
    first = launched("compile", one)
    assert [hit for _, hit in first["found"]] == [False] * len(first["found"]) != []
    triton_cache.pack(one, archive)
    other.mkdir()
    triton_cache.unpack(archive, other)
    assert {path.suffix for path in other.glob("*/*")} == {".cubin", ".json"}
    for path in sorted(one.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    second = launched("compile", other)
    assert second["found"] == [[name, True] for name, _ in first["found"]]
    # The order of function names does not depend on the order of launches.
    assert second["functions"] > 100
    assert second["nameless"] == []


def test_an_unreadable_list_of_files_is_removed(tmp_path):
    cache, other, archive = tmp_path / "one", tmp_path / "other", tmp_path / "a.tar.xz"
    for key, text in (
        ("a", "{"),
        ("b", "[]"),
        ("c", '{"child_paths": {"../x": 1, "k.cubin": 2, "k.ptx": 3}}'),
    ):
        (cache / key).mkdir(parents=True)
        (cache / key / "__grp__k.json").write_text(text)
        (cache / key / "k.cubin").touch()
    (cache / "c" / "tmp.pid_1").mkdir()
    triton_cache.pack(cache, archive)
    other.mkdir()
    triton_cache.unpack(archive, other)
    (group,) = other.rglob("__grp__*")
    assert json.loads(group.read_text()) == {"child_paths": {"k.cubin": str(other / "c" / "k.cubin")}}
    assert len(list(other.glob("*/k.cubin"))) == 3


# --- tiles --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def note(tmp_path_factory):
    return launched("note", tmp_path_factory.mktemp("note"))


@with_triton
def test_the_stage_of_errors_launches_only_compiled_kernels(note):
    for op, kernels_of in note["ops"].items():
        assert kernels_of["job"] >= 4, op
        assert kernels_of["missing"] == [], op


@with_triton
def test_every_launch_over_tiles_has_candidates_with_whole_rows_first(note):
    kinds = []
    for launch in note["launches"]:
        assert launch["others"] >= 4
        # Candidates have different kernels, except for those that differ in the number of programs.
        assert launch["kernels"] >= launch["others"] - len(tiles.PROGRAMS)
        kind = "products" if "products of" in launch["name"] else launch["chosen"].split(" x ")[1]
        kinds.append({"128": "rows"}.get(kind, "columns") if kind != "products" else kind)
    assert list(dict.fromkeys(kinds)) == ["rows", "products", "columns"]
    assert kinds == sorted(kinds, key=["rows", "products", "columns"].index)
    assert (
        len(note["jobs"]) == len(set(note["jobs"])) == sum(each["others"] for each in note["launches"]) < 80
    )


@pytest.fixture
def on_gpu(stage, monkeypatch):
    """A stage as on a GPU, with two launches, whose runs are recorded."""
    ran = []
    first, second, third = Tiles(), Tiles(BLOCK_M=16), Tiles(BLOCK_M=32)
    launches = [
        tiles.Launch(name, lambda tile, name=name: ran.append((name, tile.BLOCK_M)), first, (second, third))
        for name in ("a", "b")
    ]
    monkeypatch.setattr(tiles, "launches_of", lambda case: launches)
    monkeypatch.setattr(tiles, "time_launches", lambda launch: Samples((launch() or 2.0,)))
    stage.ran = ran
    return stage


def test_fitting_candidates_are_timed_after_the_chosen_tiles(on_gpu):
    on_gpu.record.add(tiles.FITS, {"name": "a, 32 x 64 x 32, 4 warps, 3 stages"})
    on_gpu.record.add(tiles.FITS, {"name": "b, 16 x 64 x 32, 4 warps, 3 stages"})
    tiles.time_all(on_gpu)
    assert on_gpu.ran == [("a", 64), ("a", 32), ("b", 64), ("b", 16)]
    assert [row["extra"]["chosen"] for row in on_gpu.record.found("cases")] == [True, False] * 2


def test_candidates_without_time_are_recorded_as_not_run(on_gpu):
    object.__setattr__(on_gpu, "end", time.monotonic() + 0.5)
    tiles.time_all(on_gpu)
    assert on_gpu.ran == []
    assert [row["case"][0] for row in on_gpu.record.found("not_run")] == ["a", "b"]


def test_a_failed_capture_ends_the_process(on_gpu, monkeypatch):
    def time_launches(launch):
        raise RuntimeError("no capture")

    monkeypatch.setattr(tiles, "time_launches", time_launches)
    with pytest.raises(ProcessSpentError):
        tiles.time_all(on_gpu)
    (row,) = on_gpu.record.found("not_run")
    assert row["why"].endswith("RuntimeError: no capture")


def test_candidates_that_fit_are_recorded_and_a_failure_fails_the_stage(on_gpu, monkeypatch):
    ended = [Ended("a, 1", True, None), Ended("a, 2", False, None), Ended("b, 1", None, "b, 1: off")]
    monkeypatch.setattr(tiles, "run_all", lambda *given, seconds: ended)
    with pytest.raises(RuntimeError, match="b, 1: off"):
        tiles.compile_all(on_gpu)
    assert on_gpu.record.found(tiles.FITS) == [{"name": "a, 1"}]
    assert [row["case"] for row in on_gpu.record.found("not_run")] == ["a, 2"]


def test_without_a_gpu_the_tile_sweep_is_skipped(stage):
    assert list(tiles.units(stage)) == []
    (row,) = stage.record.found("not_run")
    assert row["why"] == "it requires a GPU"
