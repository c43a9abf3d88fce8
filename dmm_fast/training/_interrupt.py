"""Signal handling that ends training between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TrainingInterrupted(Exception):  # noqa: N818 - not an error: the user or the system requested it
    """A signal ended training between two steps; the message says how to resume."""


class StopSignals:
    """A context manager that records SIGINT, SIGTERM or SIGHUP in ``received``; a second SIGINT interrupts.

    SIGHUP is sent when a terminal is closed. Signals that the process ignores, as under ``nohup`` or in a
    shell's background job, stay ignored. On exit a signal is passed on to the instance that was entered
    before, if there is one.

    Args:
        twice: let a second SIGINT interrupt at once. False for a process started by ``torchrun``, which
            passes on the SIGINT that the terminal has already sent to all processes.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, twice: bool = True) -> None:
        self._twice = twice
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python lets only the main thread set signal handlers; in other threads they are left unchanged.
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                # None stands for a handler that was not installed from Python, which could not be restored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def ignore(self) -> None:
        """Ignore the signals from now on, also after the end of ``with``: the process ends by itself.

        ``torchrun`` sends SIGTERM to all processes once one has ended, which could end another one before it
        has said why.
        """
        for number in self._earlier:
            signal.signal(number, signal.SIG_IGN)
        self._earlier.clear()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if self.received is not None:
            outer = getattr(self._earlier.get(self.received), "__self__", None)
            if isinstance(outer, StopSignals):
                outer._note(self.received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._twice and signal.SIGINT in self._earlier:
            signal.signal(signal.SIGINT, signal.default_int_handler)
