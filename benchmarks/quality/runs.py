"""Runs of the benchmark: a preset, a data set and a seed; their training, evaluation and results files."""

import dataclasses
import itertools
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.quality.evaluation import BOUND, BOUND_DRAWS, NLL, SPLITS, Evaluation
from benchmarks.quality.journal import FINISHED, Journal
from benchmarks.quality.settings import chosen, limits, recorded
from benchmarks.quality.training import train
from dmm_fast import check
from dmm_fast._io import atomic_write
from dmm_fast.data import Dataset
from dmm_fast.training import TrainConfig, load_checkpoint, load_dmm, read_metrics
from dmm_fast.training._data import fingerprint
from dmm_fast.training._folder import BEST
from dmm_fast.training._mini_batches import num_mini_batches
from dmm_fast.training._runlog import METRICS

SUITE = "quality"
LOSSES = ("train", "valid", "test", "valid_mean", "test_mean")

Results = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run, its folder under ``work`` and its results file in ``out``.

    Args:
        data: the data set.
        source: its file or folder.
        preset: the name of a preset.
        seed: seed of training.
        overrides: settings in place of the preset's.
        work: the folder for the folders of runs.
        out: the folder for results.
        cuda: train and evaluate on the current CUDA device.
        particles: draws of the importance-sampled likelihood.
    """

    data: Dataset
    source: Path
    preset: str
    seed: int
    overrides: Mapping[str, Any]
    work: Path
    out: Path
    cuda: bool = False
    particles: int = 500

    @cached_property
    def config(self) -> TrainConfig:
        """The settings of training, ``out`` excepted."""
        given = {"data": str(self.source.resolve()), "seed": self.seed, "cuda": self.cuda}
        quiet = {"tensorboard": False, "progress": False}
        config = TrainConfig.from_preset(self.preset, **{**self.overrides, **given, **quiet})
        if "checkpoint_freq" not in self.overrides:
            # Not every epoch, which may last less than the writing of its checkpoint.
            config = dataclasses.replace(config, checkpoint_freq=config.eval_frequency)
        return config.in_epochs(self._updates_per_epoch(config))

    def _updates_per_epoch(self, config: TrainConfig) -> int:
        return num_mini_batches(self.data.train.lengths, config.mini_batch_size, config.segment_steps)

    @cached_property
    def name(self) -> str:
        """Data set, preset, seed and a digest of data and settings."""
        identity = json.dumps([self.fingerprint, chosen(self.config)], sort_keys=True)
        data = re.sub(r"[^a-z0-9]+", "_", self.data.name.lower()).strip("_") or "data"
        return f"{data}-{self.preset}-{self.seed}-{zlib.crc32(identity.encode()):08x}"

    def check_settings(self) -> None:
        """Check the settings, which are put together when they are first read.

        Raises:
            TypeError: a setting is unknown or has the wrong type.
            ValueError: a setting is out of range, or conflicts with another.
        """
        check.kind("settings", self.config, TrainConfig)

    @cached_property
    def fingerprint(self) -> str:
        """The data set's name, size and CRC-32."""
        return fingerprint(self.data)

    @property
    def folder(self) -> Path:
        """The folder of training."""
        return self.work / self.name

    @property
    def path(self) -> Path:
        """The results file."""
        return self.out / f"{self.name}.json"

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest validation bound."""
        return self.folder / BEST

    def results(self) -> Results | None:
        """The contents of the results file; None if there is none.

        Raises:
            ValueError: the file is not a results file of this run.
        """
        if not self.path.is_file():
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("name") != self.name:
            raise ValueError(f"{self.path}: expected the results of {self.name}, got another file")
        return found

    def is_trained(self) -> bool:
        """True if training has ended by itself, under the present limits."""
        journal, results = Journal(self.folder), self.results()
        ended, under = journal.ended, journal.limits
        if not journal.lines and results is not None:
            ended, under = results["ended"], results["limits"]
        return ended in FINISHED and under == limits(self.config)

    def is_done(self) -> bool:
        """True if training has ended by itself and all figures are in the results file."""
        results = self.results()
        if results is None or not self.is_trained():
            return False
        nll = results[NLL]
        return nll["draws"] == self.particles and all(nll[split] is not None for split in SPLITS[NLL])

    def check_folder(self) -> None:
        """Check that the folder of training has not been lost.

        Raises:
            FileNotFoundError: there is a results file, but no folder to go on from.
        """
        if not self.folder.exists() and self.path.exists():
            raise FileNotFoundError(
                f"{self.folder}: expected the folder of the run in {self.path}, found none; to train again, "
                "remove that file"
            )

    def train(self, seconds: float, meta: Mapping[str, Any]) -> str:
        """Train for at most ``seconds``; returns why training ended.

        Raises:
            NonFiniteLossError: the loss is not finite.
            ValueError: the folder holds a run with other settings or data.
            OSError: a file cannot be written.
        """
        return train(dataclasses.replace(self.config, out=self.folder), self.data, seconds, meta)

    def evaluate(self, *, nll: bool, stopped: Callable[[], bool]) -> bool:
        """Evaluate the best parameters, the test set first; returns True if nothing requested is missing."""
        evaluation = Evaluation(self.best, self.data, cuda=self.cuda)
        wanted = [(BOUND, BOUND_DRAWS), *([(NLL, self.particles)] if nll else [])]
        return all(
            evaluation.compute(what, draws, split, stopped) is not None
            for what, draws in wanted
            for split in SPLITS[what]
        )

    def write(self, ended: str, meta: Mapping[str, Any]) -> None:
        """Write the results file: settings, machine, learning curve, and the figures that are complete."""
        journal, metrics = Journal(self.folder), read_metrics(self.folder / METRICS)
        best, dmm = load_checkpoint(self.best), load_dmm(self.best)
        per_epoch = self._updates_per_epoch(self.config)
        evaluation = Evaluation(self.best, self.data)
        results = {
            "suite": SUITE,
            "name": self.name,
            "data": self.data.name,
            "fingerprint": self.fingerprint,
            "preset": self.preset,
            "seed": self.seed,
            "overrides": dict(self.overrides),
            "settings": recorded(self.config),
            "parameters": sum(parameter.numel() for parameter in dmm.parameters()),
            "meta": dict(meta),
            "machines": [{"device": m["device"], "threads": m["threads"]} for m in journal.machines],
            "ended": ended,
            "limits": limits(self.config),
            "seconds": journal.seconds,
            "epochs": len(metrics),
            "updates": journal.steps,
            "best": {
                "epochs": best.epoch,
                "updates": best.epoch * per_epoch,
                "seconds": journal.seconds_at(best.epoch * per_epoch),
                "valid": best.best,
            },
            BOUND: _figures(evaluation, BOUND, BOUND_DRAWS),
            NLL: _figures(evaluation, NLL, self.particles),
            "curve": [
                {
                    "epoch": int(line["epoch"]) + 1,
                    "seconds": journal.seconds_at((int(line["epoch"]) + 1) * per_epoch),
                    **{name: line[name] for name in LOSSES if name in line},
                }
                for line in metrics
                if "valid" in line
            ],
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")

    def standing(self) -> str:
        """A line about the run: its state, epochs, hours and lowest validation bound."""
        journal, results = Journal(self.folder), self.results()
        path = self.folder / METRICS
        metrics = read_metrics(path) if path.is_file() else []
        if not metrics and results is None:
            return f"{self.name}: missing"
        if not metrics and results is not None:
            ended, epochs, seconds, best = (results[name] for name in ("ended", "epochs", "seconds", "best"))
            bound = best["valid"]
        else:
            ended, epochs, seconds = journal.ended, len(metrics), journal.seconds
            bound = min((line["valid"] for line in metrics if "valid" in line), default=None)
        shown = "not evaluated" if bound is None else f"best validation bound {bound:.3f}"
        state = (
            "done" if self.is_done() else "trained, not evaluated" if self.is_trained() else f"open ({ended})"
        )
        return f"{self.name}: {state}; {epochs} epochs, {seconds / 3600:.2f} h, {shown}"


def until(seconds: float) -> Callable[[], bool]:
    """A function that returns True when ``seconds`` are over, but not at its first call.

    So there is progress however short the time is.
    """
    end, calls = time.monotonic() + seconds, itertools.count()
    return lambda: next(calls) > 0 and time.monotonic() >= end


def _figures(evaluation: Evaluation, what: str, draws: int) -> dict[str, Any]:
    """The number of draws, and both averages of each split; None where a figure is not complete."""
    found = {split: evaluation.result(what, draws, split) for split in SPLITS[what]}
    shown = {split: None if figure is None else figure._asdict() for split, figure in found.items()}
    return {"draws": draws, **shown}
