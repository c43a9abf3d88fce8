"""Results files: the newest of each suite, which of them are refused, and what all their rows have."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]

# Suites whose rows are SVI steps: in the GPU's file by a row's own suite, else by the file's.
QUALITY = "train_to_quality"
STEPS = ("svi_step", "epoch", QUALITY, "cpu", "cpu-flows", "cpu-long", "cpu-scaling")
IEEE = "ieee"
# What a contestant must have been checked for before its times are printed.
CHECKS = ("SVI loss", "SVI gradients")


class ReportError(ValueError):
    """The results or the README are not fit to report from."""


def newest_per_suite(folder: Path, quick: bool = False) -> dict[str, tuple[Path, Results]]:
    """The newest results of each suite, by the date inside the file; ``quick`` accepts quick runs.

    Raises:
        ReportError: a newest file has an error beyond its bound, nothing checked, no rows, a row that
            nothing was checked for, or is a quick run; or a file does not say where it was measured.
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
    """Those of ``CHECKS`` that nobody made of the row's contestant on its case, or what stands in for it.

    A training run is not a case that the gate knows: there any check of the contestant serves.
    """
    if row["suite"] not in STEPS:
        return []
    names = [row["case"], *row["extra"].get("checked_on", [])]
    done = [
        verdict["op"]
        for verdict in correctness
        if verdict["backend"] == row["impl"] and (row["suite"] == QUALITY or _is_on(verdict["case"], names))
    ]
    return [check for check in CHECKS if not any(op.startswith(check) for op in done)]


def _is_on(case: str, names: Iterable[str]) -> bool:
    return any(case == name or case.startswith(f"{name}, batch ") for name in names)


# --- rows -------------------------------------------------------------------------------------------


def rows_of(results: Results, *suites: str) -> list[Row]:
    """The timed rows of these suites, in their order."""
    return [row for row in results["cases"] if row["suite"] in suites]


def precision_of(row: Row) -> str:
    """What products of float32 are rounded to, where the row says it."""
    precision: str = row["extra"].get("precision") or ""
    return precision


def case_and_precision(row: Row) -> str:
    """The case, with its precision where that is not IEEE and not in its name."""
    case, precision = row["case"], precision_of(row)
    return case if precision in ("", IEEE) or precision in case else f"{case}, {precision}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, where it first came."""
    return list(dict.fromkeys(values))


def share_of_bound(row: Row) -> float:
    """How much of its bound an error takes up; the bound may be zero."""
    error, bound = row["max_rel_error"], row["bound"]
    if bound == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / bound


def where_and_with_what(results: Results, against: str = "against the baseline") -> str:
    """One paragraph: commit, device, versions, and how near the gate came to its bound."""
    meta = results["meta"]
    versions = [f"{n} {meta[n]}" for n in ("python", "torch", "pyro", "jax", "triton", "cuda") if meta.get(n)]
    driver = f", driver {meta['driver']}" if meta["driver"] else ""
    closest = max(map(share_of_bound, results["correctness"]))
    text = (
        f"Measured {meta['date'][:10]} at commit `{meta['commit']}` on {meta['device']}{driver}, "
        f"{meta['threads']} of {meta['cpus']} threads, load {meta['load']:.2f} before the start; "
        f"{', '.join(versions)}. {len(results['correctness'])} checks {against} passed "
        f"in the same run, the closest at {closest:.0%} of its bound."
    )
    return f"{text} **Beware: {meta['load_warning']}.**" if meta.get("load_warning") else text
