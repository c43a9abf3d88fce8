"""The folder of a run: a single trainer at a time, writable outputs, damaged checkpoints."""

import dataclasses
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast import training
from dmm_fast.data import Dataset
from dmm_fast.training import CheckpointError, Trainer, read_metrics, train
from dmm_fast.training._folder import BEST, LAST, load_or_advise
from dmm_fast.training._lock import FolderLock
from dmm_fast.training._runlog import METRICS, RunLog
from tests.helpers_train import assert_same_run, small_data, stop_at, tiny

# A process that holds the lock of a folder, without the seconds of importing torch.
HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"{os.getpid()} on here")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Limit the length of files to ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_second_process_is_refused_and_a_dead_one_holds_no_lock(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, num_epochs=1)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"held\n"
    expected = f"no other process trains, got {tmp_path}, in which process {holder.pid} on here does"
    with pytest.raises(ValueError, match=f"out: expected a folder in which {expected}"):
        train(config, data)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    train(config, data)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, BEST, METRICS}


def test_a_lock_on_a_deleted_file_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, flock = [], fcntl.flock

    def once_too_late(file: Any, operation: int) -> None:
        if not taken:  # its holder deletes the file between opening and locking
            os.unlink(tmp_path / ".lock")
        taken.append(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", once_too_late)
    with FolderLock("out", tmp_path):
        assert len(taken) == 2
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
        with pytest.raises(ValueError, match=f"process {os.getpid()} on "), FolderLock("out", tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    number = errno.ENOLCK
    with FolderLock("out", tmp_path):
        assert f"{tmp_path} cannot be locked" in caplog.text
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"), FolderLock("out", tmp_path):
        pass


def test_a_run_continued_by_another_process_is_refused(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    late = Trainer(tiny(tmp_path, num_epochs=3, resume=True), data)
    train(tiny(tmp_path, num_epochs=2, resume=True), data)
    with pytest.raises(ValueError, match=r"as it was when this run was set up, got one that another"):
        late.run()
    assert [line["epoch"] for line in read_metrics(tmp_path / METRICS)] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_model": "none/m"}, "save_model: expected a folder in which to write m, got .*none: No such"),
        ({"save_opt": "none/o"}, "save_opt: expected a folder in which to write o, got .*none: No such"),
        ({"save_model": "file/m"}, "save_model: expected a folder .*file: Not a directory"),
        ({"save_model": "."}, "save_model: expected a file, got .*which is a folder"),
        ({"out": "file"}, "out: expected a folder for the run, got .*file: Not a directory"),
        ({"out": "file/a/b"}, "out: expected a folder in which to create .*b, got .*file: Not a directory"),
        (
            {"save_model": "m", "save_opt": "m"},
            "save_opt: expected a file of its own, got .*which is save_m",
        ),
        ({"out": "x", "save_model": f"x/{LAST}"}, f"save_model: expected a file of its own, .*{LAST} in out"),
    ],
)
def test_invalid_outputs_are_refused_before_training(
    tmp_path: Path, data: Dataset, changes: dict[str, str], message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match=message):
        Trainer(tiny(**{name: tmp_path / path for name, path in changes.items()}), data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_read_only_is_refused(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(self: Path, **_: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", read_only)
    for name in ("out", "save_model", "save_opt"):
        with pytest.raises(OSError, match=rf"{name}: expected a folder .* got .*: Read-only file system"):
            Trainer(tiny(**{name: tmp_path / "x"}), data)


def test_outputs_may_go_into_the_folder_that_is_made(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "run", num_epochs=1, save_model=tmp_path / "run" / "m"), data)
    assert (tmp_path / "run" / "m").exists()


def test_a_run_without_outputs_is_reported(
    tmp_path: Path, data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dmm_fast")
    train(tiny(num_epochs=1), data)
    line = "this run writes no files: none of out, save_model and save_opt is given"
    assert caplog.messages[0] == line
    caplog.clear()
    train(tiny(num_epochs=1, save_opt=tmp_path / "o"), data)
    assert line not in caplog.messages


def test_a_full_disk_is_named_with_its_file(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, num_epochs=1, save_model=tmp_path / "m")
    train(config, data)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = Trainer(dataclasses.replace(config, num_epochs=2, resume=True), data)
    with disk_full_after(2000):
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / LAST}'"):
            trainer._save(LAST)
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'm'}'"):
            trainer._save_plain()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", [METRICS, "tensorboard"])
def test_a_full_disk_is_reported_for_logs(tmp_path: Path, name: str) -> None:
    log = RunLog(tmp_path, tensorboard=name != METRICS, progress=False, total_steps=2, first_step=0,
                 first_epoch=0, metrics_bytes=0)  # fmt: skip
    (tmp_path / METRICS).touch()
    line = {"epoch": 0, "train": 1.5}
    full = pytest.raises(OSError, match=rf"File too large: '{tmp_path / name}")
    with log, full as caught, disk_full_after(10 if name == METRICS else 50):
        log.epoch(line)
    assert caught.value.errno == errno.EFBIG


def test_a_fault_in_the_first_step_leaves_no_run(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> float:
        raise ValueError("a fault")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, fault)
        with pytest.raises(ValueError, match="a fault"):
            train(tiny(out / "a" / "b", tensorboard=True), data)
        # Existing files are kept.
        assert not out.exists()
        out.mkdir()
        (out / "notes.txt").touch()
        stop_at(patch, 1, fault)
        with pytest.raises(ValueError, match="a fault"):
            train(tiny(out), data)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    train(tiny(out, num_epochs=1), data)


def test_a_run_killed_in_its_first_epoch_restarts_from_its_first_step(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(tmp_path / "unbroken"), data)

    def fault() -> float:
        raise MemoryError

    with monkeypatch.context() as patch:
        stop_at(patch, 2, fault)
        with pytest.raises(MemoryError):
            train(tiny(tmp_path / "broken"), data)
    assert training.load_checkpoint(tmp_path / "broken" / LAST).step == 1
    train(tiny(tmp_path / "broken", resume=True), data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_last_checkpoint_is_reported_with_a_remedy(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=2, eval_frequency=0), data)
    (tmp_path / BEST).write_bytes((tmp_path / LAST).read_bytes())
    train(tiny(tmp_path, num_epochs=3, eval_frequency=0, resume=True), data)
    whole = (tmp_path / LAST).read_bytes()
    spoil(tmp_path / LAST)
    again = tiny(tmp_path, num_epochs=3, eval_frequency=0, resume=True)
    copy = f"cp {tmp_path / BEST} {tmp_path / LAST}"
    advice = f"{BEST} .* is intact and has 2 epochs: to resume from it and train 1 epochs again, {copy}"
    with pytest.raises(CheckpointError, match=f"{LAST}: expected CRC-32 .*{advice}"):
        train(again, data)
    (tmp_path / LAST).unlink()
    with pytest.raises(FileNotFoundError, match=f"found none.*{advice}"):
        train(again, data)
    (tmp_path / LAST).write_bytes((tmp_path / BEST).read_bytes())
    train(again, data)
    assert (tmp_path / LAST).read_bytes() == whole
    spoil(tmp_path / LAST)
    spoil(tmp_path / BEST)
    with pytest.raises(CheckpointError, match=f"{BEST} beside it is damaged too: .*{BEST}: expected CRC"):
        train(again, data)
    (tmp_path / BEST).unlink()
    with pytest.raises(CheckpointError, match=f"There is no {BEST} beside it"):
        train(again, data)


def test_a_damaged_best_checkpoint_is_named(
    tmp_path: Path, data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny(tmp_path, num_epochs=2), data)
    spoil(tmp_path / BEST)
    with pytest.raises(
        CheckpointError, match=f"{LAST} beside it is intact .*: to use it, give {tmp_path / LAST} itself"
    ):
        load_or_advise(tmp_path / BEST)
    train(tiny(tmp_path, num_epochs=3, resume=True), data)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"{BEST}: expected CRC-32" in warning
    assert f"The run resumes from {LAST}" in warning


def test_settings_of_an_older_run_are_completed(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "new", num_epochs=2, eval_frequency=0), data)
    train(tiny(tmp_path / "old", num_epochs=1, eval_frequency=0), data)
    saved = training.load_checkpoint(tmp_path / "old" / LAST)
    new = ("emission", "min_scale", "standardize", "recover")
    assert saved.config.keys() > set(new)
    old = {name: value for name, value in saved.config.items() if name not in new}
    training.save_checkpoint(tmp_path / "old" / LAST, dataclasses.replace(saved, config=old))
    train(tiny(tmp_path / "old", num_epochs=2, eval_frequency=0, resume=True), data)
    for name in (METRICS, LAST):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    for place in ({"step": 3, "order": torch.arange(12)}, {"step": 1, "order": torch.arange(11)}):
        training.save_checkpoint(tmp_path / "old" / LAST, dataclasses.replace(saved, **place))
        with pytest.raises(CheckpointError, match="a step below 3 in an order of 12 sequences, got step"):
            train(tiny(tmp_path / "old", num_epochs=2, eval_frequency=0, resume=True), data)
    strange = dataclasses.replace(saved, config={**old, "learning_rate": "much"})
    training.save_checkpoint(tmp_path / "old" / LAST, strange)
    with pytest.raises(
        CheckpointError, match=f"{LAST}: expected the settings of a run, got config.learning_rate: "
    ):
        train(tiny(tmp_path / "old", num_epochs=2, eval_frequency=0, resume=True), data)
