"""A run of ``dmm-fast train`` with the tutorial's settings, and the likelihood of its test set."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import INTERRUPT_SECONDS, Ended, run
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.quality.to_target import TARGET
from benchmarks.timing import Samples
from dmm_fast.training import read_metrics
from dmm_fast.training._runlog import METRICS

SUITE = "training"
EPOCHS, PARTICLES = 5000, 500
# Epochs between evaluations.
EVERY = 100
# Seconds reserved for the evaluation at the end, including imports.
RESERVE = 20.0
TINY = ("--z-dim", "8", "--emission-dim", "8", "--transition-dim", "12", "--rnn-dim", "16")


def units(stage: Stage) -> Iterator[Unit]:
    """A single unit, one training run."""
    yield Unit("training", lambda: train(stage), seconds=float("inf"))


def train(stage: Stage) -> None:
    """Train for all epochs, or as long as the time allows, and evaluate the parameters of the lowest bound.

    Raises:
        RuntimeError: a command failed.
    """
    epochs, particles = (2, 2) if stage.quick else (EPOCHS, PARTICLES)
    common = ["--data", stage.data or "chorales", *(["--cuda"] if stage.device == "cuda" else [])]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = ["--num-epochs", str(epochs), "--eval-frequency", str(min(EVERY, epochs)), "--out", str(out)]
        words += ["--no-tensorboard", "--no-progress", *(TINY if stage.quick else ())]
        begun = time.monotonic()
        ended = dmm_fast(["train", *common, *words], stage.left() - RESERVE - INTERRUPT_SECONDS)
        seconds = time.monotonic() - begun
        metrics = read_metrics(out / METRICS) if (out / METRICS).is_file() else []
        if not metrics:
            raise RuntimeError(f"train: {ended.describe()}")
        evaluated = dmm_fast(
            ["evaluate", str(out), *common, "--num-particles", str(particles), "--split", "test", "--json"],
            max(RESERVE, stage.left()),
        )
    if evaluated.status != 0:
        raise RuntimeError(f"evaluate: {evaluated.describe()}")
    stage.record.case(
        SUITE,
        Path(stage.data).stem if stage.data else "built-in chorales",
        "dmm-fast train",
        Samples((1e3 * seconds / len(metrics),)).as_dict(),
        seconds=seconds,
        epochs=len(metrics),
        particles=particles,
        target=TARGET,
        test=json_of(evaluated.output),
        curve=[line for line in metrics if "valid" in line],
    )


def dmm_fast(arguments: Sequence[str], seconds: float) -> Ended:
    """Run the command line in a process of its own."""
    return run([sys.executable, "-m", "dmm_fast", *arguments], seconds)


def json_of(output: str) -> Any:
    """Parse the JSON at the end of the output."""
    return json.loads(output[output.index("{") :])
