"""Other programs: run with a limit, their output kept and, as a rule, shown."""

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

# After an interrupt a program has so many seconds to end by itself.
INTERRUPT_SECONDS = 12.0


class Ended(NamedTuple):
    """The end of a program; ``status`` is None where its time was up."""

    status: int | None
    output: str

    def describe(self, lines: int = 8) -> str:
        """The end of the output, and a line with the status and the last of it."""
        how = "time was up" if self.status is None else f"exit status {self.status}"
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
    """Run ``command``. When the time is up it is interrupted, and killed if that does not end it.

    The time begins when the program prints the line ``ready``, if one is given, for which it has ``starting``
    seconds. With ``own_group`` all that it has started is killed with it, else with the caller's group.
    """
    # A shell that runs this in its background has told it to ignore interrupts, and programs inherit that.
    with suppress(ValueError):  # in another thread than the main one
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a+b") if log else tempfile.TemporaryFile() as output:
        begin = output.seek(0, os.SEEK_END)

        def printed() -> str:
            # The program shares the file's offset; a read at a place of its own leaves that alone.
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
