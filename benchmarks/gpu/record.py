"""Findings of a run, stored as lines of JSON, and the results file made from them.

This module does not import torch. Lines that a process has written survive its crash.
"""

import json
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SMOKE, *OTHERS = LISTS = ("smoke", "correctness", "cases", "profiles", "not_run")

Row = dict[str, Any]


class Record:
    """Appends findings to a file, which is flushed after each of them.

    ``replaced`` maps ops whose kernels failed the smoke test to the backend that computes them instead; it is
    added to every later result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.replaced: dict[str, str] = {}

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        """Append a finding; ``kind`` is one of :data:`LISTS`, or internal to worker and runner."""
        marked = {"replaced": self.replaced} if self.replaced and kind in OTHERS else {}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row, **marked}) + "\n")

    def case(self, suite: str, case: str, impl: str, timed: Mapping[str, Any], **extra: Any) -> None:
        """Record the times of a case; ``timed`` has ``median_ms, min_ms, max_ms, n``."""
        self.add("cases", {"suite": suite, "case": case, "impl": impl, **timed, "extra": extra})
        print(f"  {case:60s} {impl:28s} {timed['median_ms']:10.4f} ms", flush=True)

    def correctness(self, row: Mapping[str, Any]) -> None:
        """Record a check result."""
        self.add("correctness", row)
        if not row["ok"]:
            error, bound = row["max_rel_error"], row["bound"]
            print(f"  BAD {row['op']}, {row['backend']}, {row['case']}: {error:.2e}, bound {bound:.2e}")

    def not_run(self, case: str, impl: str, why: str) -> None:
        """Record that an implementation was skipped in a case; ``why`` may be a traceback."""
        self.add("not_run", {"case": case, "impl": impl, "why": why})
        print(f"  not run: {case}, {impl}: {why}", flush=True)

    def detail(self, **fields: Any) -> None:
        """Record facts about the stage."""
        self.add("detail", fields)

    def unit(self, name: str, seconds: float, error: str | None) -> None:
        """Record the end of a unit of the stage; ``error`` is None on success."""
        self.add("unit", {"unit": name, "seconds": round(seconds, 3), "error": error})

    def everything(self) -> list[Row]:
        """All findings so far in order, including those of earlier workers."""
        if not self._path.is_file():
            return []
        rows = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the process was killed while writing
        return rows

    def found(self, kind: str) -> list[Row]:
        """The findings of a kind so far."""
        return of_kind(self.everything(), kind)

    def failed_kernels(self) -> list[Row]:
        """The failed rows of the smoke test; kernels that were not run have ``ok`` None."""
        return [row for row in self.found(SMOKE) if row["ok"] is False]

    def of_stage(self, name: str) -> list[Row]:
        """The findings of a stage so far."""
        rows, current = [], None
        for row in self.everything():
            current = row["name"] if row["kind"] == "stage_begun" else current
            rows += [row] if current == name else []
        return rows

    def results(self, suite: str, names: Iterable[str]) -> dict[str, Any]:
        """The results so far: the lists of findings, and a row for each stage."""
        rows = self.everything()
        meta = {key: value for row in of_kind(rows, "meta") for key, value in row.items()}
        lists = {kind: of_kind(rows, kind) for kind in LISTS}
        return {"suite": suite, "meta": meta, **lists, "stages": [self._summary(name) for name in names]}

    def _summary(self, name: str) -> Row:
        """The row of a stage; ok if every unit succeeded and every check was within its bound."""
        rows = self.of_stage(name)
        ended, units = (of_kind(rows, kind) for kind in ("stage_ended", "unit"))
        failures = [unit for unit in units if unit["error"]]
        bad = [row for row in of_kind(rows, "correctness") if not row["ok"]]
        errors = [row["error"] for row in ended if row["error"]]
        if not ended:
            errors.append("not finished" if rows else "not started: no time was left")
        errors += [f"{unit['unit']}: {unit['error'].splitlines()[-1]}" for unit in failures[:3]]
        errors += [f"and {len(failures) - 3} more units"] if len(failures) > 3 else []
        if bad:
            errors.append(f"{len(bad)} beyond their bound, the first {bad[0]['op']} of {bad[0]['backend']}")
        return {
            "name": name,
            "ok": not errors,
            "seconds": round(sum(unit["seconds"] for unit in units), 2),
            "error": "\n".join(errors) or None,
            "failures": failures,
            "detail": {key: value for row in of_kind(rows, "detail") for key, value in row.items()},
        }


def write(results: dict[str, Any], path: Path) -> None:
    """Replace the file atomically, so that it is never read half-written."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    """The rows of a kind, without the key ``kind``."""
    return [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == kind]


def whole_traceback(error: BaseException) -> str:
    """The traceback of an error, including its causes."""
    return "".join(traceback.format_exception(error)).strip()
