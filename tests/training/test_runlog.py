"""Progress bar and metrics of a run."""

import json
import re
import sys
from pathlib import Path

import pytest

from dmm_fast.training import read_metrics
from dmm_fast.training._runlog import RunLog

GOOD_LINE = json.dumps({"epoch": 0, "train": 1.5})


def test_bar_shows_nats_per_time_step_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        """Standard error as on a terminal."""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            written.append(text)

        def flush(self) -> None:
            pass

    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        with RunLog(None, tensorboard=False, progress=True, total_steps=9, first_step=3,
                    first_epoch=1, metrics_bytes=0) as log:  # fmt: skip
            log.step(1, 8.1234)
            log._bar.refresh()
    shown = "".join(written)
    assert "epoch 1" in shown
    assert "-ELBO 8.123 nats/time step" in shown
    assert "4/9" in shown
    assert "step/s" in shown or "s/step" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2: expected a JSON object with epoch and train, got 'nonsense'"),
        ('[["epoch", 1], ["train", 2]]', "line 2: expected a JSON object"),
        ('{"epoch": 1}', "line 2: expected a JSON object with epoch and train"),
        ('{"epoch": 1, "train": "low"}', "line 2, train: expected a number, got str 'low'"),
    ],
)
def test_unreadable_metrics_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD_LINE}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"metrics.jsonl, {message}")):
        read_metrics(path)


def test_an_incomplete_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{GOOD_LINE}\n{{"epoch": 1, "tr')
    assert read_metrics(path) == [{"epoch": 0, "train": 1.5}]


def test_recovery_drops_lines_and_moves_the_bar(tmp_path: Path) -> None:
    with RunLog(tmp_path, tensorboard=False, progress=True, total_steps=9, first_step=0,
                first_epoch=0, metrics_bytes=0) as log:  # fmt: skip
        log.epoch({"epoch": 0, "train": 1.5})
        kept = log.metrics_bytes
        log.epoch({"epoch": 1, "train": 1.25})
        log.go_back(3, 1, kept)
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"epoch": 0, "train": 1.5}]
        assert log._bar.n == 3
        log.epoch({"epoch": 1, "train": 1.0})
    assert [line["train"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.5, 1.0]
