"""Output of the command line, also after its reader has gone."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

FIGURES = (
    "(a) bound: negative ELBO, summed over all sequences, over the time steps of all",
    "(b) NLL: -log p(x) by importance sampling ({particles}), summed and divided likewise",
    "(c) mean over the sequences of each one's own average over its time steps, of the bound and of the NLL",
)
"""The figures of ``dmm-fast evaluate``, which are those of Krishnan et al., arXiv 1609.09869, table 3."""


def complain(message: str, code: int = 2) -> int:
    """Say ``message`` on standard error, and give back the exit code ``code``."""
    with quiet_after_hang_up(sys.stderr):
        print(f"dmm-fast: {message}", file=sys.stderr, flush=True)
    return code


@contextmanager
def quiet_after_hang_up(stream: TextIO) -> Iterator[None]:
    """Write to ``stream`` within, or nowhere once its terminal has been closed.

    Whether a process ends with its terminal is for SIGHUP to say. It may come after the first such
    error, and a process that ignores it goes on.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        discard(stream)


def discard(stream: TextIO) -> None:
    """Let what ``stream`` still holds, and is given from now on, go nowhere."""
    # Python complains at exit where it finds no place for it.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
