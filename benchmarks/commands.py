"""Subprocesses with a time limit, whose output is kept and optionally shown."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks import ROOT

# Seconds between an interrupt and a kill.
INTERRUPT_SECONDS = 12.0


class Ended(NamedTuple):
    """The exit status of a program, None after a timeout, and its output."""

    status: int | None
    output: str

    def describe(self, lines: int = 8) -> str:
        """The last lines of the output, and a line with the status and the last of them."""
        how = "timed out" if self.status is None else f"exit status {self.status}"
        if self.status is not None and self.status < 0:
            how = f"killed by {signal.Signals(-self.status).name}"
        last = self.output.strip().splitlines()[-lines:]
        return "\n".join([*last, f"{how}; last line: {last[-1].strip()}" if last else how])


def run(
    command: Sequence[str],
    seconds: float,
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    show: bool = True,
    ready: str = "",
    starting: float = 0.0,
    own_group: bool = False,
    interrupt: float = INTERRUPT_SECONDS,
) -> Ended:
    """Run ``command``. After a timeout it is interrupted, and killed if the interrupt does not end it.

    Args:
        command: program and arguments, run in the root of the checkout.
        seconds: time limit.
        env: environment, by default that of this process.
        log: file to append the output to.
        show: print the output as it comes.
        ready: a line of output that starts the time limit; by default it starts at once.
        starting: seconds within which ``ready`` must be printed.
        own_group: start a process group, which is killed as a whole.
        interrupt: seconds between the interrupt and the kill; 0: kill at once.
    """
    # A process in the background of a shell ignores interrupts, and its subprocesses inherit that.
    with suppress(ValueError):  # only the main thread may set handlers
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a+b") if log else tempfile.TemporaryFile() as output:
        begin = output.seek(0, os.SEEK_END)

        def printed() -> str:
            # The program shares the file offset, which pread does not move.
            return os.pread(output.fileno(), 1 << 28, begin).decode(errors="replace")

        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=own_group
        )
        limit, status, text = time.monotonic() + (starting or seconds), None, ""
        try:
            while status is None and time.monotonic() < limit:
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(0.05)
                text, before = printed(), len(text)
                if show:
                    print(text[before:], end="", flush=True)
                if ready and ready in text.splitlines():
                    limit, ready = time.monotonic() + seconds, ""
            if status is None and interrupt:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(interrupt)
        finally:  # an interrupt of this process ends the program too
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if own_group else process.kill()
            process.wait()
        return Ended(status, printed())
