"""The smoke test of the kernels, and the summary that ends a run's output."""

from typing import Any

from benchmarks.report.markdown import NOTHING, cell, table
from benchmarks.report.profiles import profile_tables
from benchmarks.report.results import Results, Row

LINES = 60


def summary(results: Results) -> str:
    """Summarise the run: its stages; then, in :data:`LINES` lines, the smoke test and a profile of a step."""
    lines = ["", "stages:"]
    for stage in results["stages"]:
        lines.append(
            f"  {'ok    ' if stage['ok'] else 'FAILED'} {stage['name']:12s} {stage['seconds']:6.1f} s"
        )
        lines += [f"    {line}" for line in (stage["error"] or "").splitlines()]
    last = [smoke_table(results["smoke"]), *profile_tables(results)[:1]]
    return "\n".join([*lines, *"\n\n".join(filter(None, last)).splitlines()[-LINES:]])


def smoke_table(rows: list[Row]) -> str:
    """A row for each kernel, and details of each failure below the table; empty without rows."""
    if not rows:
        return ""
    titles = ["kernel", "backend", "result", "worst", "error", "bound", "NaN", "s"]
    lines, rows = (
        [],
        sorted(rows, key=lambda row: row["kernel"]),
    )  # recorded in the order in which their processes ended
    for row in rows:
        numbers = [NOTHING if row[key] is None else f"{row[key]:.1e}" for key in ("error", "bound")]
        counts = [NOTHING if row[key] is None else f"{row[key]:g}" for key in ("nan", "seconds")]
        result = {True: "ok", False: "**BAD**", None: "not run"}[row["ok"]]
        lines.append([row["kernel"], row["backend"], result, row["worst"] or NOTHING, *numbers, *counts])
    failures = [f"{row['kernel']}: {line}" for row in rows if row["ok"] is False for line in _failure(row)]
    return "\n".join([table(titles, lines, texts=4), *([""] if failures else []), *failures])


def _failure(row: Row) -> list[str]:
    """The first bad index, the errors by time step, the hang record, or how the process ended."""
    lines = []
    if row["first_bad"]:
        lines.append("first bad: " + ", ".join(f"{name} {index}" for name, index in row["first_bad"].items()))
    if row["by_step"]:
        lines.append("error by step: " + ", ".join(_in_eighths(row["by_step"])))
    return lines + [cell(row[key].strip().splitlines()[-1]) for key in ("hang", "failed") if row[key]]


def _in_eighths(errors: list[float | None]) -> list[str]:
    """The largest error in each eighth of the time steps; None stands for a non-finite error."""
    size = -(-len(errors) // 8)
    parts = [(first, errors[first : first + size]) for first in range(0, len(errors), size)]
    return [f"t={first}..{first + len(part) - 1} {_largest(part)}" for first, part in parts]


def _largest(errors: list[float | None]) -> str:
    finite = [error for error in errors if error is not None]
    return f"{max(finite):.0e}" if len(finite) == len(errors) else "not finite"


def replaced_sentence(results: Results) -> str:
    """In bold, the ops computed by another backend because their kernels failed; empty if there are none."""
    lists: list[Any] = [results["cases"], results["correctness"], results["profiles"]]
    found = {item for rows in lists for row in rows for item in row.get("replaced", {}).items()}
    replaced = [f"`{op}` by {backend}" for op, backend in sorted(found)]
    return (
        f"**Kernels failed their smoke test; computed instead: {', '.join(replaced)}.**" if replaced else ""
    )
