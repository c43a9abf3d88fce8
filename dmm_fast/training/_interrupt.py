"""Ending a loop between two steps when the user, or the system, asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TrainingInterrupted(Exception):  # noqa: N818 - no error: somebody asked for it
    """A signal ended training between two steps; the message says how to go on."""


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted in ``received``; a second SIGINT interrupts.

    SIGHUP comes when a terminal is closed. A signal that is ignored, as ``nohup`` and a shell's
    background jobs have it, stays so.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python lets only the main thread handle signals; elsewhere they stay as they are.
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                # None: a handler that Python did not set and could not put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if signal.SIGINT in self._earlier:
            signal.signal(signal.SIGINT, signal.default_int_handler)
