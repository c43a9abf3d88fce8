"""Bounds and importance-sampled likelihoods of a model, in an evaluation that can be interrupted and resumed.

The figures are those of :func:`dmm_fast.infer.evaluate_elbo` and
:func:`dmm_fast.infer.evaluate_importance_nll`. They are computed for groups of sequences of similar length,
each with a seed of its own, and written to a file after each group. A resumed evaluation therefore ends with
the same figures as an uninterrupted one.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmm_fast._io import atomic_write
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import ElboEvaluation, importance_nll, log_weights
from dmm_fast.infer._evaluation import Batch
from dmm_fast.model import DMM
from dmm_fast.training import load_dmm

EVALUATION = "evaluation.json"
BOUND, NLL = "bound", "nll"
# The test set first: its figures are the ones to report. Importance sampling takes fifty times as long as the
# bound, by which models are chosen.
SPLITS = {BOUND: ("test", "valid"), NLL: ("test",)}
BOUND_DRAWS = 10
SEED = 1

# Draws x sequences x time steps at a time, which take some 6 kB each: 400 MB on a CPU, 3 GB on a GPU.
ROWS = {"cpu": 1 << 16, "cuda": 1 << 19}
# Draws of a group at a time, unless a single sequence is too long for so many.
FEWEST_DRAWS = 16
# Seconds between lines of progress.
EVERY = 30.0

Nats = list[float | None]


class Evaluation:
    """The figures of a checkpoint, kept in the folder of its run.

    Figures of another checkpoint in the file are dropped.

    Args:
        checkpoint: the file of the model.
        data: the data set.
        cuda: evaluate on the current CUDA device.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: the file is not a checkpoint.
    """

    def __init__(self, checkpoint: Path, data: Dataset, *, cuda: bool = False) -> None:
        self._checkpoint, self._data = checkpoint, data
        self._device = torch.device("cuda" if cuda else "cpu")
        self._path = checkpoint.with_name(EVALUATION)
        self._crc = f"{zlib.crc32(checkpoint.read_bytes()):08x}"
        self._nats = self._read()
        self._dmm: DMM | None = None

    def result(self, what: str, draws: int, split: str) -> ElboEvaluation | None:
        """A figure of a split in nats per time step, averaged both ways; None if it is not complete."""
        lengths = getattr(self._data, split).lengths.double()
        nats = self._nats.get(_key(what, draws, split), [])
        found = [value for value in nats if value is not None]
        if len(found) != len(lengths):
            return None
        total = torch.tensor(found, dtype=torch.float64)
        return ElboEvaluation((total.sum() / lengths.sum()).item(), (total / lengths).mean().item())

    def compute(
        self, what: str, draws: int, split: str, stopped: Callable[[], bool] = lambda: False
    ) -> ElboEvaluation | None:
        """Compute what is missing of a figure; None if ``stopped`` returned True before all was computed."""
        sequences: SequenceSet = getattr(self._data, split).to(self._device)
        key = _key(what, draws, split)
        if len(self._nats.get(key, [])) != len(sequences):
            self._nats[key] = [None] * len(sequences)
        nats = self._nats[key]
        rows = ROWS[self._device.type]
        told = time.monotonic()
        for number, indices in enumerate(groups(sequences.lengths, rows // FEWEST_DRAWS)):
            if all(nats[index] is not None for index in indices.tolist()):
                continue
            if stopped():
                return None
            figures = self._nats_of(what, draws, sequences.batch(indices.to(self._device)), SEED + number)
            for index, value in zip(indices.tolist(), figures.tolist(), strict=True):
                nats[index] = value
            self._write()
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                done = sum(value is not None for value in nats)
                where = f"{self._path.parent.name}: {what} of {split}, {draws} draws"
                print(f"  {where}: {done} of {len(nats)} sequences", flush=True)
        return self.result(what, draws, split)

    @torch.no_grad()
    def _nats_of(self, what: str, draws: int, batch: Batch, seed: int) -> Tensor:
        on_gpu = self._device.type == "cuda"
        if self._dmm is None:
            self._dmm = load_dmm(self._checkpoint, cuda=on_gpu)
        B, T = batch[0].shape[:2]
        at_a_time = max(1, min(draws, ROWS[self._device.type] // (B * T)))
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
            torch.manual_seed(seed)
            if what == NLL:
                return importance_nll(self._dmm, batch, draws, at_a_time)
            weights = [log_weights(self._dmm, batch, part) for part in parts(draws, at_a_time)]
            return -torch.cat(weights).mean(0)

    def _read(self) -> dict[str, Nats]:
        """The figures in the file; none if it is missing, damaged, or of another checkpoint."""
        try:
            found: Any = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(found, dict) or found.get("checkpoint") != self._crc:
            return {}
        nats = found.get("nats")
        if not isinstance(nats, dict) or not all(map(_are_nats, nats.values())):
            return {}
        return nats

    def _write(self) -> None:
        with atomic_write(self._path) as file:
            file.write(json.dumps({"checkpoint": self._crc, "nats": self._nats}).encode() + b"\n")


def groups(lengths: Tensor, steps: int) -> Iterator[Tensor]:
    """Indices of sequences of similar length: at most ``steps`` steps in a group, or a single sequence.

    The steps of the padding count.
    """
    order = lengths.cpu().argsort(stable=True).tolist()
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * int(lengths[index]) > steps:
            yield torch.tensor(group)
            group = []
        group.append(index)
    yield torch.tensor(group)


def parts(total: int, size: int) -> list[int]:
    """Numbers of at most ``size`` that add up to ``total``."""
    return [min(size, total - start) for start in range(0, total, size)]


def _are_nats(values: object) -> bool:
    """True for a list of numbers, with None where one is missing."""
    return isinstance(values, list) and all(isinstance(each, float | None) for each in values)


def _key(what: str, draws: int, split: str) -> str:
    return f"{what} of {split}, {draws} draws"
