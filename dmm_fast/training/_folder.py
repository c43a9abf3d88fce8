"""The folder of a run: its files, its lock, and advice when a checkpoint is damaged."""

from __future__ import annotations

import shlex
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from dmm_fast._io import check_folder, check_writable
from dmm_fast.check import fail
from dmm_fast.training import _checkpoint as ckpt
from dmm_fast.training._checkpoint import Checkpoint, CheckpointError
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._lock import FolderLock
from dmm_fast.training._runlog import METRICS, logger

LAST = "last.safetensors"
BEST = "best.safetensors"


class RunFolder:
    """The folder of a run; a context manager that creates it and keeps other processes from training in it.

    A folder created on entering is removed again if the run fails before it has written a checkpoint.

    Args:
        path: the folder, which need not exist yet.

    Raises:
        ValueError: on entering, another process is training in the folder, or has done so since this object
            was made.
        OSError: on entering, the folder cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._state()

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / LAST

    def __enter__(self) -> RunFolder:
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with ExitStack() as entered:
            self.path.mkdir(parents=True, exist_ok=True)
            entered.enter_context(FolderLock("out", self.path))
            if self._state() != self._known:
                expected = f"{self.last} as it was when this run was set up"
                fail("out", expected, "one that another process has written since")
            # A process that was killed during a write leaves a partial file.
            for half_written in self.path.glob(".*.safetensors.*.part"):
                half_written.unlink()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        if self._made and error[0] is not None and not self.last.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # another process may use a parent folder by now
                for parent in self._made[1:]:
                    parent.rmdir()

    def refuse_a_run(self) -> None:
        """Check that the folder holds no run, whose files a new one would overwrite.

        Raises:
            ValueError: it holds a run.
        """
        for name in (LAST, BEST, METRICS):
            path = self.path / name
            # An empty metrics file may be left by a run that failed before its first checkpoint.
            if path.exists() and (name != METRICS or path.stat().st_size > 0):
                fail("out", "a folder without a run, or resume", f"{self.path}, which has {name}")

    def load(self) -> Checkpoint:
        """The checkpoint to resume from; raises as :func:`load_last` does."""
        self._known = self._state()
        return load_last(self.path)

    def warn_of_best(self) -> None:
        """Log a warning if ``best.safetensors``, which a resumed run does not read, is damaged."""
        best = self.path / BEST
        if best.exists():
            try:
                ckpt.load_checkpoint(best)
            except CheckpointError as error:
                logger.warning("%s. The run resumes from %s; the next best model replaces it", error, LAST)

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the file cannot be written; the earlier one is untouched.
        """
        ckpt.save_checkpoint(self.path / name, checkpoint)
        self._known = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        """Identity of the last checkpoint's file, which changes whenever it is written."""
        try:
            stat = self.last.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def load_last(folder: Path) -> Checkpoint:
    """The checkpoint to resume a run from.

    Raises:
        FileNotFoundError: the folder has no checkpoint.
        CheckpointError: the checkpoint is damaged; the message says how to continue.
    """
    path = folder / LAST
    if not path.exists():
        hint = _advice(path) if (folder / BEST).exists() else ""
        raise FileNotFoundError(f"{path}: expected a checkpoint to resume from, found none{hint}")
    return load_or_advise(path)


def load_or_advise(path: Path) -> Checkpoint:
    """Read a checkpoint; if a run's checkpoint is damaged, the message names the other files of the run.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: the file is not a checkpoint, or is damaged.
    """
    try:
        return ckpt.load_checkpoint(path)
    except CheckpointError as error:
        if path.name not in (LAST, BEST):
            raise
        raise CheckpointError(f"{error}{_advice(path)}") from error


def settings_of(path: Path, saved: Checkpoint) -> TrainConfig:
    """The settings of the run that wrote a checkpoint; settings missing in it have their defaults.

    Raises:
        CheckpointError: the checkpoint's settings are invalid.
    """
    return ckpt.train_config(path, saved.config)


def check_outputs(config: TrainConfig) -> None:
    """Check that the outputs in ``config`` can be written and that no two of them share a file.

    Raises:
        ValueError: two outputs have the same path, or an output file is an existing folder.
        OSError: a folder cannot be created or written.
    """
    taken: dict[Path, str] = {}
    if config.out is not None:
        check_folder("out", config.out)
        taken = {(config.out / name).resolve(): f"{name} in out" for name in (LAST, BEST, METRICS)}
    for name, path in (("save_model", config.save_model), ("save_opt", config.save_opt)):
        if path is None:
            continue
        check_writable(name, path, will_exist=config.out)
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            fail(name, "a file of its own", f"{path}, which is {other}")


def _advice(path: Path) -> str:
    """End of a message about a damaged or missing checkpoint: the run's other files, and how to continue."""
    other = path.with_name(BEST if path.name == LAST else LAST)
    if not other.exists():
        return f". There is no {other.name} beside it"
    try:
        whole = ckpt.load_checkpoint(other)
    except CheckpointError as error:
        return f". {other.name} beside it is damaged too: {error}"
    what = f". {other.name} beside it is intact and has {whole.epoch} epochs"
    if path.name == BEST:
        return f"{what}: to use it, give {other} itself"
    metrics = path.with_name(METRICS)
    epochs = metrics.read_bytes().count(b"\n") if metrics.exists() else whole.epoch
    again = f"train {epochs - whole.epoch} epochs again"
    return f"{what}: to resume from it and {again}, cp {shlex.quote(str(other))} {shlex.quote(str(path))}"
