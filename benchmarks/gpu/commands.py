"""Other programs: run with a limit, their output kept and shown."""

import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

# After an interrupt a program has this long for its last words.
LAST_WORDS = 12.0


class Ended(NamedTuple):
    """How a program ended; ``status`` is None where the time was up."""

    status: int | None
    output: str

    def describe(self, lines: int = 8) -> str:
        """The status and the end of the output."""
        how = "time was up" if self.status is None else f"exit status {self.status}"
        return "\n".join([how, *self.output.strip().splitlines()[-lines:]])


def run(
    command: Sequence[str], seconds: float, *, env: Mapping[str, str] | None = None, echo: bool = True
) -> Ended:
    """Run ``command``. When the time is up it is interrupted, and killed if that does not end it.

    What it has started itself ends with the stage, whose process group it shares.
    """
    # A shell that runs this in its background has told it to ignore interrupts, and programs inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        status: int | None = None
        try:
            status = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read()
    if echo:
        print(text, flush=True)
    return Ended(status, text)
