"""The stage that trains by the command line, run within this process."""

import sys
import time

import pytest

from benchmarks.commands import Ended
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages import training
from benchmarks.report.training import training_table
from dmm_fast.cli import main
from dmm_fast.data import chorales, save_npz


@pytest.fixture
def stage(tmp_path):
    data = tmp_path / "songs.npz"
    save_npz(chorales(num_train=5, num_valid=1, num_test=1), data)
    return Stage(tmp_path, device="cpu", quick=True, data=str(data), end=time.monotonic() + 60.0)


@pytest.fixture
def here(monkeypatch, capsys):
    """Run commands in this process; returns the arguments of each."""
    asked = []

    def run(command, seconds):
        assert command[:3] == [sys.executable, "-m", "dmm_fast"]
        asked.append(command[3:])
        return Ended(main(command[3:]), capsys.readouterr().out)

    monkeypatch.setattr(training, "run", run)
    return asked


def test_training_is_timed_evaluated_and_reported(stage, here):
    training.train(stage)
    assert [arguments[0] for arguments in here] == ["train", "evaluate"]
    (row,) = stage.record.found("cases")
    assert (row["case"], row["impl"]) == ("songs", "dmm-fast train")
    assert (row["extra"]["epochs"], row["extra"]["target"]) == (2, 6.87)
    assert row["extra"]["seconds"] == pytest.approx(2e-3 * row["median_ms"])
    assert "| songs | dmm-fast train | 2 |" in training_table({"cases": [row]})


def test_failed_training_is_reported(stage, here, tmp_path):
    (tmp_path / "songs.npz").write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match="train: exit status"):
        training.train(stage)
