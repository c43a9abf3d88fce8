"""What a stage has found, a line of JSON for each finding: whatever ends the stage, what is written stays."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LISTS = ("correctness", "cases", "profiles", "not_run")
LAST_LINES = 12

Row = dict[str, Any]


class Record:
    """Appends to a file; each line is on its way to the disk before the next finding is made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """One finding of a kind: ``meta``, ``detail``, ``unit`` or one of the results' lists."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")

    def case(self, suite: str, case: str, impl: str, timed: Mapping[str, Any], **extra: Any) -> None:
        """One row of times; ``timed`` are ``median_ms, min_ms, max_ms, n``."""
        self.add("cases", {"suite": suite, "case": case, "impl": impl, **timed, "extra": extra})
        print(f"  {case:60s} {impl:28s} {timed['median_ms']:10.4f} ms", flush=True)

    def correctness(self, row: Mapping[str, Any]) -> None:
        """One comparison with its bound."""
        self.add("correctness", row)
        if not row["ok"]:
            error, bound = row["max_rel_error"], row["bound"]
            print(f"  BAD {row['op']}, {row['backend']}, {row['case']}: {error:.2e}, bound {bound:.2e}")

    def not_run(self, case: str, impl: str, why: str) -> None:
        """What was left out."""
        self.add("not_run", {"case": case, "impl": impl, "why": why})
        print(f"  not run: {case}, {impl}: {why}", flush=True)

    def detail(self, **fields: Any) -> None:
        """What belongs to the stage as a whole."""
        self.add("detail", fields)

    def found(self, kind: str) -> list[Row]:
        """The findings of a kind so far, those of processes before this one too."""
        return of_kind(read(self._path), kind)

    def unit(self, name: str, seconds: float, error: str | None) -> None:
        """The end of a unit of the stage; ``error`` is None where it ended well."""
        self.add("unit", {"unit": name, "seconds": round(seconds, 3), "error": error})


def read(path: Path) -> list[Row]:
    """Every line that was written whole."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the process was stopped while it wrote
    return rows


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    """The rows of a kind, without the word that names it."""
    return [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == kind]


def last_lines(error: BaseException) -> str:
    """The end of the error's traceback."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(lines[-LAST_LINES:])
