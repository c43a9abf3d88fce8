"""A lock on a folder, held by one process at a time and released when that process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from dmm_fast._io import naming
from dmm_fast.check import fail
from dmm_fast.training._runlog import logger

_FILE = ".lock"

# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """A context manager that locks an existing folder; reading the folder needs no lock.

    The lock is an ``flock`` on the open file ``.lock`` in the folder, so the kernel releases it when the
    process ends, even by a crash. The file holds the process id, for the error message.

    Args:
        name: the argument that an error message names.
        folder: the folder to lock.

    Raises:
        ValueError: on entering, another process, or another ``FolderLock`` of this process, holds the lock.
        OSError: on entering, the file cannot be written.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._path = folder / _FILE
        self._opened = ExitStack()

    def __enter__(self) -> FolderLock:
        with ExitStack() as opened:
            # The holder removes the file when it leaves. A lock on a file that was removed between open and
            # flock protects nothing, so a new file is opened then.
            while not self._holds(file := opened.enter_context(self._path.open("a+b"))):
                pass
            with naming(self._path):
                file.truncate(0)
                file.write(f"{os.getpid()} on {platform.node()}".encode())
                file.flush()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._path.unlink(missing_ok=True)
        self._opened.close()

    def _holds(self, file: BinaryIO) -> bool:
        """Lock ``file``; return True if it is still the file in the folder."""
        try:
            with naming(self._path):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace") or "of unknown number"
            expected = "a folder in which no other process trains"
            fail(self._name, expected, f"{self._folder}, in which process {holder} does")
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s cannot be locked: train in it with one process at a time", self._folder)
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
