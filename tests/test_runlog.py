"""What a run shows and keeps."""

import json
import sys
from pathlib import Path

import pytest

from dmm_fast.runlog import RunLog, read_metrics


def test_bar_tells_nats_per_time_step_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        """Standard error as a terminal has it."""

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


def test_unreadable_metrics_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"epoch": 0}) + "\nnonsense\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(path)
