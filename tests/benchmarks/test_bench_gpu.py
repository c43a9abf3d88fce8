"""``python -m benchmarks.gpu`` from the command line to the JSON file, on a CPU and in tiny."""

import json

import pytest

from benchmarks.gpu.__main__ import main

STAGES = ["machine", "errors", "derivatives", "ceilings", "scans", "steps", "quality", "profile"]
TIMES = {"median_ms", "min_ms", "max_ms", "n"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "out"
    options = ["--out", str(folder), "--device", "cpu", "--quick", "--commit", "abc123"]
    assert main([*options, "--only", *STAGES]) == 0
    return json.loads((folder / "results.json").read_text())


def test_every_stage_is_there_and_ended_well(results):
    assert [stage["name"] for stage in results["stages"]] == STAGES
    assert all(stage["ok"] and stage["error"] is None for stage in results["stages"])
    assert all(stage["seconds"] > 0 for stage in results["stages"])


def test_numbers_bear_what_they_were_measured_with(results):
    meta = results["meta"]
    assert meta["commit"] == "abc123"
    assert meta["quick"] is True
    assert {"device", "driver", "torch", "triton", "cuda", "python", "date"} <= set(meta)


def test_rows_have_the_form_that_is_promised(results):
    assert results["correctness"]
    for row in results["correctness"]:
        assert {"op", "backend", "case", "max_rel_error", "bound", "ok"} <= set(row)
        assert row["ok"] is True
    for row in results["cases"]:
        assert {"suite", "case", "impl", "extra"} | TIMES == set(row)
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
    assert {row["suite"] for row in results["cases"]} == {
        "ceilings",
        "scans",
        "svi_step",
        "epoch",
        "train_to_quality",
    }


def test_scans_have_their_steps_their_peers_and_their_share_of_the_ceilings(results):
    rows = [row for row in results["cases"] if row["suite"] == "scans"]
    of_reference = [row for row in rows if row["impl"] == "reference"]
    kinds = {row["case"].rpartition(", ")[2] for row in of_reference}
    assert kinds == {"forward", "backward", "forward and backward"}
    for row in rows:
        assert row["extra"]["us_per_step"] == pytest.approx(1e3 * row["median_ms"] / 5)
        if row["impl"] == "reference" and not row["case"].endswith(", backward"):
            assert row["extra"]["share"] > 0
    assert any(row["impl"] == "nn.RNN, float32" for row in rows)
    assert {"FlashRNN"} <= {row["impl"] for row in results["not_run"]}


def test_steps_are_checked_before_they_are_timed(results):
    rows = [row for row in results["cases"] if row["suite"] in ("svi_step", "epoch")]
    cases = list(dict.fromkeys((row["case"], row["extra"]["precision"]) for row in rows))
    assert [precision for _, precision in cases] == ["ieee", "ieee", "tf32"]
    for case, _ in cases:
        timed = [row["impl"] for row in rows if row["case"] == case]
        assert timed[0] == "tutorial"
        assert {"dmm_fast", "PyTorch, batched"} < set(timed)
        assert timed[-2:] == ["dmm_fast, capturable", "dmm_fast, graphed"]
        checks = [row for row in results["correctness"] if row["case"].startswith(f"{case}, batch")]
        assert {row["backend"] for row in checks if row["op"] == "SVI gradients"} == set(timed)
    assert any(row["op"] == "SVI step: worst loss" for row in results["correctness"])


def test_a_step_is_taken_apart(results):
    assert [row["impl"] for row in results["profiles"]] == [
        "dmm_fast, graphed",
        "dmm_fast, capturable",
        "dmm_fast",
    ]
    for row in results["profiles"]:
        assert row["kernels"][0]["us"] > 0


def test_both_are_trained(results):
    rows = [row for row in results["cases"] if row["suite"] == "train_to_quality"]
    assert [row["impl"] for row in rows] == ["tutorial", "dmm_fast"]
    assert rows[1]["extra"]["epochs"] == 2
    assert all(row["extra"]["curve"] for row in rows)
