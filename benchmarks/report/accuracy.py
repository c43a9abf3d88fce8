"""Errors of single ops against float64: a sentence and a table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.report.markdown import NOTHING, table
from benchmarks.report.results import Results, Row, distinct, share_of_bound


class Measured(NamedTuple):
    """The error rows of a run, and the settings they were measured with."""

    rows: list[Row]
    about: dict[str, Any]


def measured(results: Results) -> Measured | None:
    """The errors as ``benchmarks.run`` or the GPU stage ``errors`` wrote them; None if there are none."""
    if "errors" in results:
        return Measured(results["errors"], results.get("errors_about", {}))
    stages = [stage for stage in results.get("stages", []) if stage["name"] == "errors"]
    if not stages:
        return None
    rows = [row for row in results["correctness"] if "eager_rel_error" in row]
    return Measured(rows, stages[0]["detail"].get("about", {}))


def errors_sentence(results: Results) -> str:
    """A sentence on how close the errors came to their bounds; empty if none was measured."""
    found = measured(results)
    if not found or not found.rows:
        return ""
    ops, closest = {_op(row) for row in found.rows}, max(map(share_of_bound, found.rows))
    return (
        f"{len(found.rows)} values and gradients of {len(ops)} ops were compared with float64 in this run; "
        f"the bound is {found.about['eager_factor']:g} times the error of eager PyTorch in "
        f"float32, and the largest error was {closest:.0%} of its bound."
    )


def errors_table(results: Results) -> str:
    """A row for each op: the value and the gradient whose errors are closest to their bounds."""
    found = measured(results)
    if found is None:
        return "Errors of single ops against float64: not measured in this run."
    if not found.rows:
        return ""
    titles = ["op", "backend", "value", "error", "times eager's", "gradient", "error", "times eager's"]
    lines = []
    for backend, op in distinct((row["backend"], _op(row)) for row in found.rows):
        mine = [row for row in found.rows if (row["backend"], _op(row)) == (backend, op)]
        values = _nearest(mine, lambda name: name.startswith("value"))
        gradients = _nearest(mine, lambda name: not name.startswith("value"))
        lines.append([f"`{op}`", backend, *values, *gradients])
    shown = table(titles, lines, texts=2)
    return "\n\n".join(["Errors of single ops in float32:", shown, _legend(found)])


def _legend(found: Measured) -> str:
    about = found.about
    cases = " and ".join(distinct(row["case"] for row in found.rows))
    sizes = ", ".join(f"{name}={size}" for name, size in about["sizes"].items() if name not in "BT")
    return (
        f"Relative to the norm of the float64 result; medians over {about['seeds']} draws, {cases}, {sizes}. "
        "For each op, the value and the gradient closest to their bounds are shown. The bound is "
        f"{about['eager_factor']:g} times the error of eager PyTorch in float32 on the same inputs, and at "
        f"least {about['floor']:.1e}. No input of a ReLU is closer to zero than {about['relu_margin']:.0e}: "
        "closer to zero, its sign depends on rounding, in eager PyTorch as well."
    )


def _op(row: Row) -> str:
    return row["op"].partition(": ")[0]


def _nearest(rows: Sequence[Row], wanted: Callable[[str], bool]) -> tuple[str, str, str]:
    """Name, error and ratio to eager's error of the wanted row that is closest to its bound."""
    mine = [row for row in rows if wanted(row["op"].partition(": ")[2])]
    if not mine:
        return (NOTHING, NOTHING, NOTHING)
    row = max(mine, key=share_of_bound)
    name = row["op"].partition(": ")[2].removeprefix("gradient of ")
    eager = row["eager_rel_error"]
    times = f"{row['max_rel_error'] / eager:.2f}" if eager > 0 else NOTHING
    return (f"{name}, {row['case'].rpartition(', ')[2]}", f"{row['max_rel_error']:.1e}", times)
