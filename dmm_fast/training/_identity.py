"""The settings, sizes and data of a run, which a resumed run and all processes of a run have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dmm_fast.check import fail
from dmm_fast.training._checkpoint import Checkpoint, CheckpointError
from dmm_fast.training._folder import settings_of


class Identity(NamedTuple):
    """Everything that determines the results of a run.

    ``settings`` are those of :meth:`TrainConfig.kept`, ``sizes`` the constructor arguments of the DMM,
    ``data`` the fingerprint of the data set.
    """

    settings: dict[str, Any]
    sizes: dict[str, Any]
    data: str
    num_sequences: int
    num_mini_batches: int

    def check_same(self, path: Path, saved: Checkpoint) -> None:
        """Refuse to resume with settings, sizes or data that differ from those of the checkpoint at ``path``.

        Raises:
            ValueError: they differ.
            CheckpointError: the checkpoint does not belong to a run of these data.
        """
        for given, kept in ((self.settings, settings_of(path, saved).kept()), (self.sizes, saved.sizes)):
            for name in [*given, *sorted(kept.keys() - given.keys())]:
                if given.get(name) != kept.get(name):
                    why = ", since its cosine schedule spans all epochs" if name == "num_epochs" else ""
                    fail(name, f"{kept.get(name)!r}, as in {path}{why}", repr(given.get(name)))
        if self.data != saved.data:
            fail("data", f"the data {path} was trained on ({saved.data})", self.data)
        rows = self.num_sequences if saved.order is None else len(saved.order)
        if not 0 <= saved.step < self.num_mini_batches or rows != self.num_sequences:
            expected = f"a step below {self.num_mini_batches} in an order of {self.num_sequences} sequences"
            fail(str(path), expected, f"step {saved.step} in one of {rows}", CheckpointError)
