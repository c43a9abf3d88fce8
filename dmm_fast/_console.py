"""Output of the command line, including after its pipe or terminal was closed."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from dmm_fast._io import naming

FIGURES = (
    "(a) bound: negative ELBO, summed over all sequences, divided by the number of all time steps",
    "(b) NLL: -log p(x) by importance sampling ({particles}), summed and divided in the same way",
    "(c) mean over sequences of each sequence's average over its time steps, of the bound and of the NLL",
)
"""The figures of ``dmm-fast evaluate``, which are those of Krishnan et al., arXiv 1609.09869, table 3."""


def complain(message: str, code: int = 2) -> int:
    """Print ``message`` to standard error and return the exit code ``code``."""
    with quiet_after_hang_up(sys.stderr):
        print(f"dmm-fast: {message}", file=sys.stderr, flush=True)
    return code


@contextmanager
def quiet_after_hang_up(stream: TextIO) -> Iterator[None]:
    """Suppress the error of a write to ``stream`` after its terminal was closed, and discard later output.

    Ending the process with its terminal is left to SIGHUP, which may arrive after the first such error; a
    process that ignores SIGHUP continues.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(stream)


def discard(stream: TextIO) -> None:
    """Discard the buffered and all later output of ``stream``."""
    # Otherwise Python reports an error at exit, when it cannot flush the buffer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class AroundTheBar(logging.Handler):
    """Prints to standard output without breaking the progress bar.

    Unlike a ``StreamHandler`` it raises on a broken pipe, so that training ends with its reader.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with quiet_after_hang_up(sys.stdout):
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()


class LogFile(logging.Handler):
    """Appends lines to a file. Unlike a ``FileHandler`` it raises errors, such as a full disk.

    The file is opened at the first line, so that a run that is refused does not empty an earlier log.
    """

    def __init__(self, path: Path, *, append: bool) -> None:
        super().__init__()
        self._path, self._mode = path, "a" if append else "w"

    def emit(self, record: logging.LogRecord) -> None:
        with naming(self._path), self._path.open(self._mode, encoding="utf-8") as file:
            file.write(self.format(record) + "\n")
        self._mode = "a"
