"""``python -m benchmarks.gpu`` from the command line to the JSON file, on a CPU with tiny sizes."""

import json

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.runner import PRESETS
from benchmarks.gpu.smoke import EVERY
from benchmarks.report import __main__ as report
from benchmarks.report import pages, scans

# Stages that are not part of the first preset.
MORE = ["machine", "scan_sizes", "epoch", "quality", "roofline"]
TIMES = {"median_ms", "min_ms", "max_ms", "n"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def run(folder, *what):
    # Enough for a loaded machine, as these tests are not about speed.
    options = ["--out", str(folder), "--device", "cpu", "--quick", "--commit", "abc123", "--budget", "1500"]
    with pytest.MonkeyPatch.context() as patch:
        # One thread for each worker, as for the tests themselves: more would contend for the cores.
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([*options, *what]) == 0
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def results(out):
    return run(out / "first", "--preset", "first")


@pytest.fixture(scope="module")
def more(out):
    return run(out / "more", "--only", *MORE[1:])


def test_every_stage_succeeds(results, more):
    assert [stage["name"] for stage in results["stages"]] == list(PRESETS["first"])
    assert {stage["name"] for stage in more["stages"]} == set(MORE)
    assert (results["suite"], more["suite"]) == ("gpu-first", "gpu")
    for stage in [*results["stages"], *more["stages"]]:
        assert stage["ok"], stage
        assert stage["seconds"] >= 0
    results["smoke"].sort(key=lambda row: EVERY.index(row["kernel"]))
    assert [row["kernel"] for row in results["smoke"]] == list(EVERY)
    assert [row["ok"] for row in results["smoke"]] == [True] * (len(EVERY) - 1) + [None]


def test_a_dry_run_can_be_reported_elsewhere(results, out, capsys):
    folder, readme, page = out / "report", out / "README.md", out / "results.md"
    folder.mkdir()
    (folder / "first.json").write_text(json.dumps(results))
    for path in (readme, page):
        path.write_text(f"{pages.START}{pages.END}")
    paths = ["--results", str(folder), "--readme", str(readme), "--page", str(page)]
    assert report.main(paths) == 1
    assert "expected a full run, got a quick one" in capsys.readouterr().err
    assert report.main([*paths, "--quick"]) == 0
    assert "## Suite `gpu-first`" in page.read_text()
    assert "### Smoke test of the kernels" in (folder / "README.md").read_text()
    assert (folder / "gpu-first-scans.png").is_file()


def test_results_have_metadata(results):
    meta = results["meta"]
    assert meta["commit"] == "abc123"
    assert meta["quick"] is True
    assert {"device", "driver", "torch", "triton", "cuda", "python", "date"} <= set(meta)
    library = results["stages"][0]["detail"]["library"]
    assert library["instruction_set"]


def test_rows_have_their_documented_fields(results, more):
    assert results["correctness"]
    for row in [*results["correctness"], *more["correctness"]]:
        assert {"op", "backend", "case", "max_rel_error", "bound", "ok"} <= set(row)
        assert row["ok"] is True
    for row in [*results["cases"], *more["cases"]]:
        assert {"suite", "case", "impl", "extra"} | TIMES == set(row)
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert {row["suite"] for row in results["cases"]} == {"scans", "svi_step", "guides"}
    assert {row["suite"] for row in more["cases"]} == {"scans", "epoch", "roofline", "train_to_quality"}


def test_scans_have_times_per_step_a_peer_and_their_operations(results):
    rows = [row for row in results["cases"] if row["suite"] == "scans"]
    of_reference = [row for row in rows if row["impl"] == "reference"]
    kinds = {row["case"].rpartition(", ")[2] for row in of_reference}
    assert kinds == {"forward", "backward", "forward and backward"}
    for row in rows:
        assert row["extra"]["us_per_step"] == pytest.approx(1e3 * row["median_ms"] / 5)
        if row["impl"] == "reference" and not row["case"].endswith(", backward"):
            assert row["extra"]["flops"] > 0
    assert any(row["impl"] == "nn.RNN, float32" for row in rows)
    floors = [row["case"] for row in results["not_run"] if row["impl"] == "exchange_floor"]
    assert len(floors) == 10
    # The report recognises these cases by their prefixes.
    assert all(case.startswith(scans.FLOOR) for case in floors)
    sweeps = {row["case"].split(",")[0] for row in results["not_run"] if row["case"].startswith(scans.SWEEP)}
    assert len(sweeps) == 4


def test_steps_are_checked_before_they_are_timed(results, more):
    for found, suite in ((results, "svi_step"), (more, "epoch")):
        rows = [row for row in found["cases"] if row["suite"] == suite]
        (case,) = {row["case"] for row in rows}
        timed = [row["impl"] for row in rows]
        assert timed[0] == "tutorial"
        assert {"dmm_fast", "PyTorch, batched", "PyTorch, hand-written backward"} < set(timed)
        last = ["dmm_fast, capturable", "dmm_fast, graphed"]
        last += ["dmm_fast, graphed, two streams"] if suite == "svi_step" else []
        assert timed[-len(last) :] == last
        checks = [row for row in found["correctness"] if row["case"].startswith(f"{case}, batch")]
        assert {row["backend"] for row in checks if row["op"] == "SVI gradients"} == set(timed)
        skipped = [row["impl"] for row in found["not_run"] if row["case"] == "all"]
        assert skipped == ["PyTorch, batched, CUDA graph"]
    assert any(row["op"] == "SVI step: worst loss" for row in results["correctness"])


def test_a_step_is_profiled(results):
    assert [row["impl"] for row in results["profiles"]] == ["dmm_fast, graphed", "dmm_fast, capturable"]
    for row in results["profiles"]:
        assert row["kernels"][0]["us"] > 0


def test_guides_are_checked_and_timed(results):
    rows = [row for row in results["cases"] if row["suite"] == "guides"]
    assert [row["extra"]["guide"] for row in rows] == ["st-l", "st-r, 2 flows"]
    for row in rows:
        of_replays = [check["op"] for check in results["correctness"] if check["case"] == row["case"]]
        assert of_replays == ["SVI step: worst loss"]
        of_guide = [check for check in results["correctness"] if check["backend"] == row["extra"]["guide"]]
        assert [check["op"] for check in of_guide] == ["SVI loss", "SVI gradients"]


def test_both_implementations_are_trained(more):
    rows = [row for row in more["cases"] if row["suite"] == "train_to_quality"]
    assert [row["impl"] for row in rows] == ["tutorial", "dmm_fast"]
    assert rows[1]["extra"]["epochs"] == 2
    assert all(row["extra"]["curve"] for row in rows)
