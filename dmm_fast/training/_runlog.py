"""Output of a training run: log lines, a progress bar, metrics, TensorBoard."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dmm_fast._io import naming
from dmm_fast.check import describe, fail, kind
from dmm_fast.training._scalars import ScalarFile

if TYPE_CHECKING:
    from dmm_fast.training._config import TrainConfig
    from dmm_fast.training._mini_batches import MiniBatches

logger = logging.getLogger("dmm_fast")

METRICS = "metrics.jsonl"


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl`` file: one per epoch, with losses in nats per time step.

    A last line without a newline, as a process that was killed leaves it, is ignored.

    Raises:
        FileNotFoundError: the file does not exist.
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


def announce(config: TrainConfig, batches: MiniBatches) -> None:
    """Log the sizes of a run, and what may surprise: no files, no best model, a last KL weight below 1."""
    if not (config.out or config.save_model or config.save_opt):
        logger.info("this run writes no files: none of out, save_model and save_opt is given")
    if config.patience > 0 and config.out is None:
        logger.warning("patience: without out the model of the best validation bound is not kept")
    steps = len(batches)
    if config.num_epochs * steps < config.annealed_steps(steps):
        factor = config.annealing_factor(config.num_epochs - 1, steps - 1, steps)
        setting = "annealing_epochs" if config.annealing_steps is None else "annealing_steps"
        logger.info("the run ends before %s: its last KL weight is %.2f", setting, factor)
    logger.info(
        "N_train_data: %d     avg. training seq. length: %.2f    N_mini_batches: %d",
        batches.num_sequences,
        batches.num_time_steps / batches.num_sequences,
        steps,
    )


class RunLog:
    """The progress bar, ``out/metrics.jsonl`` and ``out/tensorboard`` of a run, as a context manager.

    Args:
        out: the run's folder; None: write neither metrics nor TensorBoard scalars.
        tensorboard: write TensorBoard scalars too.
        progress: show a bar if standard error is a terminal.
        total_steps: number of steps of the whole run.
        first_step: number of steps already done, 0 for a new run.
        first_epoch: number of epochs already done.
        metrics_bytes: size of the part of ``metrics.jsonl`` that belongs to these epochs; the file is
            truncated to it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``metrics.jsonl`` is shorter than ``metrics_bytes``.
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
        # Discard what an interrupted run logged after its last checkpoint.
        self._begin(first_epoch or None, metrics_bytes)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            smoothing=0.05,
            dynamic_ncols=True,
            # tqdm takes None to mean: show the bar only on a terminal.
            disable=None if progress else True,
        )
        self._epoch_started = time.perf_counter()
        self._steps = 0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _begin(self, epoch: int | None, metrics_bytes: int) -> None:
        """Discard the output of ``epoch`` and later epochs; None: there is no output yet."""
        self.metrics_bytes = metrics_bytes
        if self._metrics is not None:
            _cut(self._metrics, metrics_bytes)
        if self._tensorboard is not None:
            self._scalars = ScalarFile(self._tensorboard, first_step=epoch)

    def go_back(self, step: int, epoch: int, metrics_bytes: int) -> None:
        """Discard all output after ``step`` steps of the run; the arguments are those of the constructor."""
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
        """Log and write the metrics of an epoch: ``epoch``, ``train`` and any further measurements.

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
            # No times are written, so that the file of a resumed run equals that of an uninterrupted one.
            with naming(self._metrics), self._metrics.open("ab") as file:
                file.write(json.dumps(dict(line)).encode() + b"\n")
                file.flush()
                self.metrics_bytes = file.tell()
        if self._scalars is not None:
            shown = {name: value for name, value in line.items() if name != "epoch"}
            self._scalars.add({**shown, "steps_per_second": rate}, epoch)


def _cut(path: Path, size: int) -> None:
    """Truncate ``path`` to ``size`` bytes; the file may be missing if ``size`` is 0."""
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        fail(str(path), f"at least the {size} bytes that its checkpoint records", f"{found}")
    if found > size:
        os.truncate(path, size)
