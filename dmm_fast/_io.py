"""Atomic file writes, and operating system errors that name their file."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dmm_fast.check import fail


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    The file can be read back (``w+b``) and has a ``name``. On an error it is removed, and an earlier file at
    ``path`` stays untouched.
    """
    if not path.name:
        fail("path", "the path of a file", repr(str(path)))
    # Not `tempfile`, whose files are readable by their owner only, while a data set may be shared by a group.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with naming(path):
            with temporary.open("x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to operating system errors that name no file, such as those of ``write``.

    Raises:
        OSError: the error raised within the block, of the same type, with ``path`` as its file name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def check_writable(name: str, path: Path, *, will_exist: Path | None = None) -> None:
    """Check that a file can be written at ``path``, by creating and removing another one beside it.

    Args:
        name: the argument that an error message names.
        path: the file to be written.
        will_exist: a folder that may be missing, since it will be created later.

    Raises:
        ValueError: ``path`` is a folder.
        OSError: its folder does not exist or cannot be written.
    """
    if path.is_dir():
        fail(name, "a file", f"{path}, which is a folder")
    folder = path.parent
    if not folder.exists() and will_exist is not None and folder.resolve() == will_exist.resolve():
        return
    _probe(name, folder, f"in which to write {path.name}")


def check_folder(name: str, folder: Path) -> None:
    """Check that files can be written in ``folder``, which is created later if it is missing.

    Raises:
        OSError: the folder, or the one in which it would be created, is not writable or is not a folder.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    _probe(name, nearest, "for the run" if nearest == folder else f"in which to create {folder}")


def _probe(name: str, folder: Path, purpose: str) -> None:
    probe = folder / f".{uuid.uuid4().hex}.probe"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        fail(name, f"a folder {purpose}", f"{folder}: {reason}", type(error))
