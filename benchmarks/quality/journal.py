"""The journal of a run: wall time by gradient steps, over all sessions of its training.

``metrics.jsonl`` holds no times, so that the file of a resumed run equals that of an uninterrupted one. The
journal is a file beside it, with a line of JSON for each epoch: ``steps`` and ``seconds``, both since the
beginning of the run. The first line of a session also has ``meta``, facts about the machine. The last has
``ended``, the reason, and ``limits``, at which training would have ended by itself.
"""

import json
from pathlib import Path
from typing import Any

from dmm_fast._io import atomic_write

JOURNAL = "journal.jsonl"

EPOCHS, PATIENCE = "all epochs", "patience"
BUDGET, SIGNAL, UNENDED = "time budget", "signal", "unfinished"
FINISHED = (EPOCHS, PATIENCE)

Line = dict[str, Any]


class Journal:
    """The journal of the run in ``folder``.

    Raises:
        ValueError: the file is not a journal.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self.lines: list[Line] = []
        text = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if line.endswith("\n"):  # a process that was killed leaves part of a line
                self._take(_read(f"{self._path}, line {number}", line))

    @property
    def steps(self) -> int:
        """Gradient steps so far."""
        return int(self.lines[-1]["steps"]) if self.lines else 0

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    @property
    def ended(self) -> str:
        """The reason why the last session ended; :data:`UNENDED` if it goes on or was killed."""
        return str(self.lines[-1].get("ended", UNENDED)) if self.lines else UNENDED

    @property
    def limits(self) -> list[Any] | None:
        """The limits under which the last session ended."""
        return self.lines[-1].get("limits") if self.lines else None

    @property
    def machines(self) -> list[dict[str, Any]]:
        """The machines of all sessions, in order."""
        return [line["meta"] for line in self.lines if "meta" in line]

    def seconds_at(self, steps: int) -> float:
        """Wall seconds after ``steps`` gradient steps, or after the first number above that has a line."""
        return next((float(line["seconds"]) for line in self.lines if line["steps"] >= steps), self.seconds)

    def go_back(self, steps: int) -> None:
        """Drop what came after ``steps`` gradient steps, which a run resumed from a checkpoint repeats."""
        self.lines = [line for line in self.lines if line["steps"] <= steps]
        if self._path.is_file():
            with atomic_write(self._path) as file:
                file.writelines(map(_written, self.lines))

    def add(self, steps: int, seconds: float, **more: Any) -> None:
        """Append a line."""
        line = {"steps": steps, "seconds": round(seconds, 3), **more}
        with self._path.open("ab") as file:
            file.write(_written(line))
        self._take(line)

    def _take(self, line: Line) -> None:
        # After a loss that was not finite, training may have returned to fewer steps.
        while self.lines and self.lines[-1]["steps"] >= line["steps"]:
            line = line | {name: value for name, value in self.lines.pop().items() if name == "meta"}
        self.lines.append(line)


def _written(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _read(where: str, text: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or not all(
        isinstance(line.get(n), int | float) for n in ("steps", "seconds")
    ):
        raise ValueError(f"{where}: expected a JSON object with steps and seconds, got {text[:80]!r}")
    return line
