"""What a training run shows and keeps as it goes: lines, a progress bar, metrics, TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dmm_fast.check import fail

logger = logging.getLogger("dmm_fast")

METRICS = "metrics.jsonl"


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``: one an epoch, losses in nats per time step.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            fail(f"{path}, line {number}", "a JSON object", repr(line[:80]))
    return metrics


class RunLog:
    """The bar, ``out/metrics.jsonl`` and ``out/tensorboard`` of a run, until ``with`` is left.

    Args:
        out: the run's folder, or None: then neither metrics nor TensorBoard are written.
        tensorboard: write TensorBoard scalars too.
        progress: show a bar where standard error is a terminal.
        total_steps: of the whole run.
        first_step: steps already done, 0 for a new run.
        first_epoch: epochs already done.
        metrics_bytes: how much of ``metrics.jsonl`` belongs to them; the rest is cut off.

    Raises:
        ValueError: ``metrics.jsonl`` is shorter than that.
    """

    def __init__(
        self,
        out: Path | None,
        *,
        tensorboard: bool,
        progress: bool,
        total_steps: int,
        first_step: int,
        first_epoch: int,
        metrics_bytes: int,
    ) -> None:
        from tqdm import tqdm

        self.metrics_bytes = metrics_bytes
        self._metrics = None if out is None else _open_at(out / METRICS, metrics_bytes)
        self._writer: Any = None
        if out is not None and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted run logged after its last checkpoint is hidden.
            purge = first_epoch if first_epoch else None
            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            smoothing=0.05,
            dynamic_ncols=True,
            # tqdm reads None as: only on a terminal.
            disable=None if progress else True,
        )
        self._epoch_started = time.perf_counter()
        self._steps = 0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._writer is not None:
            self._writer.close()

    def step(self, epoch: int, loss_per_time_step: float) -> None:
        """Move the bar by one step of ``epoch``."""
        self._steps += 1
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(f"-ELBO {loss_per_time_step:.3f} nats/time step", refresh=False)
        self._bar.update()

    def epoch(self, line: Mapping[str, float]) -> None:
        """Print, and keep, one epoch's line: ``epoch``, ``train`` and what else was measured."""
        now = time.perf_counter()
        seconds, self._epoch_started = now - self._epoch_started, now
        rate, self._steps = self._steps / seconds, 0
        epoch = int(line["epoch"])
        logger.info("[training epoch %04d]  %.4f \t(dt = %.3f sec)", epoch, line["train"], seconds)
        if "valid" in line:
            logger.info("[val/test epoch %04d]  %.4f  %.4f", epoch, line["valid"], line["test"])
        if self._metrics is not None:
            # No times: a resumed run's file is the same, byte for byte, as an unbroken one's.
            self._metrics.write(json.dumps(dict(line)).encode() + b"\n")
            self._metrics.flush()
            self.metrics_bytes = self._metrics.tell()
        if self._writer is not None:
            for name, value in line.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, epoch)
            self._writer.add_scalar("steps_per_second", rate, epoch)


def _open_at(path: Path, size: int) -> Any:
    """``path`` opened to append after its first ``size`` bytes; the rest is dropped."""
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        fail(str(path), f"at least the {size} bytes its checkpoint knows of", f"{found}")
    file = path.open("ab")
    os.truncate(path, size)
    file.seek(size)
    return file
