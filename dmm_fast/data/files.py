"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dmm_fast import check
from dmm_fast.disk import naming


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without an
    error.

    The file can be read back (``w+b``) and has a ``name``. On an error it is removed, and what was
    at ``path`` before stays untouched.
    """
    if not path.name:
        check.fail("path", "the path of a file", repr(str(path)))
    # Not `tempfile`: its files are private to the user, and a data set may be meant for a group.
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
