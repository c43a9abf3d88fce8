"""The folder of a run: its files, who may write there, and the way on from a spoilt checkpoint."""

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
    """The folder of a run. While ``with`` is entered it exists, and no other process trains in it.

    A folder that was made for a run which then ends by an error before it has a checkpoint is removed again.

    Args:
        path: the folder, which may be missing still.

    Raises:
        ValueError: on entering, another process trains in it, or has done so since this was made.
        OSError: on entering, the folder cannot be made or written.
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
            # A process killed while it wrote leaves what it had written so far.
            for half_written in self.path.glob(".*.safetensors.*.part"):
                half_written.unlink()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        if self._made and error[0] is not None and not self.last.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # another process may use one by now
                for parent in self._made[1:]:
                    parent.rmdir()

    def refuse_a_run(self) -> None:
        """Check that no run is there, whose files a new one would overwrite.

        Raises:
            ValueError: there is one.
        """
        for name in (LAST, BEST, METRICS):
            path = self.path / name
            # Without a line it is all that a run has left that did not get through a step.
            if path.exists() and (name != METRICS or path.stat().st_size > 0):
                fail("out", "a folder without a run, or resume", f"{self.path}, which has {name}")

    def load(self) -> Checkpoint:
        """The checkpoint to resume from; errors as of :func:`load_last`."""
        self._known = self._state()
        return load_last(self.path)

    def warn_of_best(self) -> None:
        """Say so if ``best.safetensors`` is spoilt, which a resumed run does not read."""
        best = self.path / BEST
        if best.exists():
            try:
                ckpt.load_checkpoint(best)
            except CheckpointError as error:
                logger.warning("%s. The run goes on from %s; the next best model replaces it", error, LAST)

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; the earlier one is untouched.
        """
        ckpt.save_checkpoint(self.path / name, checkpoint)
        self._known = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        """Identity of the last checkpoint's file, another one once it was written anew."""
        try:
            stat = self.last.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def load_last(folder: Path) -> Checkpoint:
    """The checkpoint to resume a run from.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is spoilt; the message says how to go on.
    """
    path = folder / LAST
    if not path.exists():
        hint = _advice(path) if (folder / BEST).exists() else ""
        raise FileNotFoundError(f"{path}: expected a checkpoint to resume from, found none{hint}")
    return load_or_advise(path)


def load_or_advise(path: Path) -> Checkpoint:
    """Read a checkpoint; if it is a spoilt one of a run, the message says what else the run has.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, or not a whole one.
    """
    try:
        return ckpt.load_checkpoint(path)
    except CheckpointError as error:
        if path.name not in (LAST, BEST):
            raise
        raise CheckpointError(f"{error}{_advice(path)}") from error


def settings_of(path: Path, saved: Checkpoint) -> TrainConfig:
    """The settings of the run that wrote a checkpoint; those it does not know have their defaults.

    Raises:
        CheckpointError: they are no settings of a run.
    """
    return ckpt.train_config(path, saved.config)


def check_outputs(config: TrainConfig) -> None:
    """Check that what ``config`` says to write can be written, and that no file is to hold two things.

    Raises:
        ValueError: two outputs are one file, or one is a folder.
        OSError: a folder cannot be made or written.
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
    """End of a message about a spoilt or lost checkpoint: the other files of the run, and the way on."""
    other = path.with_name(BEST if path.name == LAST else LAST)
    if not other.exists():
        return f". There is no {other.name} beside it"
    try:
        whole = ckpt.load_checkpoint(other)
    except CheckpointError as error:
        return f". {other.name} beside it is spoilt too: {error}"
    what = f". {other.name} beside it is whole, of after {whole.epoch} epochs"
    if path.name == BEST:
        return f"{what}: name {other} itself to use that"
    metrics = path.with_name(METRICS)
    epochs = metrics.read_bytes().count(b"\n") if metrics.exists() else whole.epoch
    again = f"train {epochs - whole.epoch} epochs again"
    return f"{what}: to go on from there and {again}, cp {shlex.quote(str(other))} {shlex.quote(str(path))}"
