"""The benchmark of guides: its runs, files and table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import guides
from benchmarks.guides import GUIDES, Run
from benchmarks.report.guides import overview_parts
from dmm_fast import ops
from dmm_fast._arguments import INFERENCE
from dmm_fast.data import chorales

SMALL = {"z_dim": 3, "emission_dim": 4, "transition_dim": 5, "rnn_dim": 6, "iaf_dim": 5}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few short chorales, small networks, few draws."""
    config = Run.config
    monkeypatch.setattr(Run, "config", lambda run, *given: replace(config(run, *given), **SMALL))
    monkeypatch.setattr(guides, "chosen_data", lambda path: chorales(6, 2, 2, num_steps=(8, 12)))
    monkeypatch.setattr(guides, "PARTICLES", 3)
    monkeypatch.setattr(guides, "GUIDES", (("mf-lr", 0), ("st-r", 1)))
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert torch.get_num_threads() == threads


def results_in(folder: Path) -> dict:
    (path,) = folder.glob("cpu-guides-*.json")
    return json.loads(path.read_text())


def test_every_guide_is_trained() -> None:
    assert [guide for guide, flows in GUIDES if not flows] == list(INFERENCE)
    assert [flows for guide, flows in GUIDES if guide == "st-r"] == [0, 1, 2]


def test_runs_are_trained_once_and_written_with_their_checks(small: None, tmp_path: Path) -> None:
    arguments = ["--epochs", "2", "--jobs", "1", "--folder", str(tmp_path / "runs")]
    assert guides.main([*arguments, "--out", str(tmp_path / "first")]) == 0
    first = results_in(tmp_path / "first")
    assert [row["impl"] for row in first["cases"]] == ["mf-lr", "st-r, 1 flows"]
    assert all(row["test"]["nll"][0] > 0 and len(row["curve"]) == 1 for row in first["cases"])
    assert {(v["op"], v["backend"], v["ok"]) for v in first["correctness"]} == {
        (what, run, True) for what in ("SVI loss", "SVI gradients") for run in ("mf-lr", "st-r, 1 flows")
    }
    assert guides.main([*arguments, "--out", str(tmp_path / "second")]) == 0
    assert results_in(tmp_path / "second")["cases"] == first["cases"]
    text = "\n".join(map(str, overview_parts(first)))
    assert f"{first['cases'][1]['test']['nll'][0]:.3f}" in text
    assert "| st-r, 1 flows |" in text


def test_a_guide_that_fails_its_check_is_not_trained(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = guides._loss_and_grads

    def off(*given):
        loss, grads = honest(*given)
        return (loss if ops.info()["requested"] == "reference" else 1.001 * loss), grads

    monkeypatch.setattr(guides, "_loss_and_grads", off)
    assert (
        guides.main(["--epochs", "1", "--jobs", "1", "--folder", str(tmp_path), "--out", str(tmp_path)]) == 1
    )
    assert "not trained" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
