"""Output of a training run as it goes: lines, a progress bar, metrics, TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from dmm_fast._io import naming
from dmm_fast.check import describe, fail, kind
from dmm_fast.training._scalars import ScalarFile

logger = logging.getLogger("dmm_fast")

METRICS = "metrics.jsonl"


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``: one an epoch, losses in nats per time step.

    A last line that has no end, of a process that died while it wrote, is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object of numbers with ``epoch`` and ``train``.
    """
    kind("path", path, str, Path)
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    metrics = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        metrics.append(_metrics_of(f"{path}, line {number}", line.rstrip()))
    return metrics


def _metrics_of(where: str, line: str) -> dict[str, float]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"epoch", "train"} <= found.keys():
        fail(where, "a JSON object with epoch and train", repr(line[:80]))
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            fail(f"{where}, {name}", "a number", describe(value))
    return found


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
        TypeError: an argument is of another type.
        ValueError: ``metrics.jsonl`` is shorter than that.
        OSError: a file cannot be written; the error names it.
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

        kind("out", out, Path, type(None))
        for name, value in (
            ("total_steps", total_steps),
            ("first_step", first_step),
            ("first_epoch", first_epoch),
            ("metrics_bytes", metrics_bytes),
        ):
            kind(name, value, int)
        self._metrics = None if out is None else out / METRICS
        self._scalars: ScalarFile | None = None
        self._tensorboard = out / "tensorboard" if out is not None and tensorboard else None
        # What an interrupted run logged after its last checkpoint is hidden.
        self._begin(first_epoch or None, metrics_bytes)
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

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _begin(self, epoch: int | None, metrics_bytes: int) -> None:
        """Drop what there is of ``epoch`` and later ones; None: there is nothing yet."""
        self.metrics_bytes = metrics_bytes
        if self._metrics is not None:
            _cut(self._metrics, metrics_bytes)
        if self._tensorboard is not None:
            self._scalars = ScalarFile(self._tensorboard, first_step=epoch)

    def go_back(self, step: int, epoch: int, metrics_bytes: int) -> None:
        """Forget what came after ``step`` steps of the run; arguments as when this was made."""
        self._begin(epoch, metrics_bytes)
        self._bar.n = step
        self._bar.refresh()

    def step(self, epoch: int, loss_per_time_step: float) -> None:
        """Move the bar by one step of ``epoch``."""
        self._steps += 1
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(f"-ELBO {loss_per_time_step:.3f} nats/time step", refresh=False)
        self._bar.update()

    def epoch(self, line: Mapping[str, float]) -> None:
        """Print, and keep, one epoch's line: ``epoch``, ``train`` and what else was measured.

        Raises:
            OSError: a file cannot be written; the error names it.
        """
        now = time.perf_counter()
        seconds, self._epoch_started = now - self._epoch_started, now
        rate, self._steps = self._steps / seconds, 0
        epoch = int(line["epoch"])
        logger.info("[training epoch %04d]  %.4f \t(dt = %.3f sec)", epoch, line["train"], seconds)
        if "valid" in line:
            logger.info("[val/test epoch %04d]  %.4f  %.4f", epoch, line["valid"], line["test"])
        if self._metrics is not None:
            # No times: a resumed run's file is the same, byte for byte, as an unbroken one's.
            with naming(self._metrics), self._metrics.open("ab") as file:
                file.write(json.dumps(dict(line)).encode() + b"\n")
                file.flush()
                self.metrics_bytes = file.tell()
        if self._scalars is not None:
            shown = {name: value for name, value in line.items() if name != "epoch"}
            self._scalars.add({**shown, "steps_per_second": rate}, epoch)


def _cut(path: Path, size: int) -> None:
    """Keep the first ``size`` bytes of ``path``, which may be missing if that is none."""
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        fail(str(path), f"at least the {size} bytes its checkpoint knows of", f"{found}")
    if found > size:
        os.truncate(path, size)
