"""Results files: the newest of each suite, their validation, and access to their rows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]

# Suites whose rows are SVI steps: the suite of a row in a GPU file, the suite of the file otherwise.
QUALITY = "train_to_quality"
STEPS = ("svi_step", "epoch", QUALITY, "cpu", "cpu-flows", "cpu-long", "cpu-scaling")
IEEE = "ieee"
# Checks that an implementation must have passed before its times are reported.
CHECKS = ("SVI loss", "SVI gradients")


class ReportError(ValueError):
    """Raised for results or a README that cannot be reported."""


def newest_per_suite(folder: Path, quick: bool = False) -> dict[str, tuple[Path, Results]]:
    """The newest results of each suite, by the date inside the file; ``quick`` accepts quick runs.

    Raises:
        ReportError: the newest file of a suite has an error beyond its bound, no checks, no rows, a row
            without its checks, or comes from a quick run; or a file does not say where it was measured.
    """
    newest: dict[str, tuple[Path, Results]] = {}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "date" not in results["meta"]:
            raise ReportError(f"{path.name}: meta: expected date, commit and device, got {results['meta']}")
        known = newest.get(results["suite"])
        if known is None or results["meta"]["date"] >= known[1]["meta"]["date"]:
            newest[results["suite"]] = (path, results)
    for path, results in newest.values():
        _refuse_unfit(path, results, quick)
    return dict(sorted(newest.items()))


def _refuse_unfit(path: Path, results: Results, quick: bool) -> None:
    red = [row for row in results["correctness"] + results.get("errors", []) if row["ok"] is not True]
    if red:
        first = f"{red[0]['op']} of {red[0]['backend']} on {red[0]['case']}"
        raise ReportError(f"{path.name}: correctness: expected all ok, got a failure: {first}")
    if not results["correctness"] or not results["cases"]:
        raise ReportError(f"{path.name}: expected checked and timed cases, got none")
    if results["meta"]["quick"] and not quick:
        raise ReportError(f"{path.name}: expected a full run, got a quick one")
    for row in results["cases"]:
        for check in _missing_checks(row, results["correctness"]):
            raise ReportError(
                f"{path.name}: correctness: expected {check} of {row['impl']} for {row['case']}, got none"
            )


def _missing_checks(row: Row, correctness: list[Row]) -> list[str]:
    """List the ``CHECKS`` that the row's implementation lacks, on its case or on those checked instead.

    A training run is not a case of the equivalence check: any check of its implementation counts.
    """
    if row["suite"] not in STEPS:
        return []
    names = [row["case"], *row["extra"].get("checked_on", [])]
    done = [
        result["op"]
        for result in correctness
        if result["backend"] == row["impl"] and (row["suite"] == QUALITY or _is_on(result["case"], names))
    ]
    return [check for check in CHECKS if not any(op.startswith(check) for op in done)]


def _is_on(case: str, names: Iterable[str]) -> bool:
    return any(case == name or case.startswith(f"{name}, batch ") for name in names)


# --- rows -------------------------------------------------------------------------------------------


def rows_of(results: Results, *suites: str) -> list[Row]:
    """The timed rows of these suites, in the order of the file."""
    return [row for row in results["cases"] if row["suite"] in suites]


def precision_of(row: Row) -> str:
    """The precision of float32 products; empty if the row does not record it."""
    precision: str = row["extra"].get("precision") or ""
    return precision


def case_and_precision(row: Row) -> str:
    """The case, with its precision if that is not IEEE and not part of the name."""
    case, precision = row["case"], precision_of(row)
    return case if precision in ("", IEEE) or precision in case else f"{case}, {precision}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """The distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def share_of_bound(row: Row) -> float:
    """The ratio of an error to its bound; the bound may be zero."""
    error, bound = row["max_rel_error"], row["bound"]
    if bound == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / bound


def where_and_with_what(results: Results, against: str = "against the baseline") -> str:
    """A paragraph: commit, device, versions, and the largest error of the checks relative to its bound."""
    meta = results["meta"]
    versions = [f"{n} {meta[n]}" for n in ("python", "torch", "pyro", "jax", "triton", "cuda") if meta.get(n)]
    driver = f", driver {meta['driver']}" if meta["driver"] else ""
    closest = max(map(share_of_bound, results["correctness"]))
    text = (
        f"Measured {meta['date'][:10]} at commit `{meta['commit']}` on {meta['device']}{driver}, "
        f"{meta['threads']} of {meta['cpus']} threads, load {meta['load']:.2f} before the start; "
        f"{', '.join(versions)}. {len(results['correctness'])} checks {against} passed "
        f"in the same run; the largest error was {closest:.0%} of its bound."
    )
    return f"{text} **Caution: {meta['load_warning']}.**" if meta.get("load_warning") else text
