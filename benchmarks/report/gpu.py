"""Sections of a GPU run: results of its checks, then SVI steps, training, scans and single ops."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.report.accuracy import errors_sentence, errors_table
from benchmarks.report.guides import guide_steps_sentence, guide_steps_table
from benchmarks.report.markdown import cell, table
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import first_baseline, places_on, scaling_plot, speed_up_plot
from benchmarks.report.profiles import profile_tables
from benchmarks.report.results import QUALITY, Results, Row, precision_of, rows_of, where_and_with_what
from benchmarks.report.rowwise import roofline_table, rowwise_table
from benchmarks.report.scans import floors_table, scans_picture, scans_table, sweep_table
from benchmarks.report.smoke import replaced_sentence, smoke_table
from benchmarks.report.steps import (
    axes_of,
    checked_in_parts,
    headline_table,
    implementations_table,
    peers_table,
)
from benchmarks.report.tiles import tiles_table
from benchmarks.report.to_target import quality_picture, quality_table
from benchmarks.report.training import training_sentence, training_table

# Stages that check correctness. If one of them failed, the section says so first. Only the smoke test is
# required; a run may skip the others.
SMOKE = "smoke"
CHECKING = (SMOKE, "kernels", "errors", "replays", "tests")
# Where an implementation that could not be set up was not run.
EVERYWHERE = "all"
# Names of stages in older results files.
RENAMED = {"race": "svi_step"}
AGAINST = "against the baseline and against float64"


def overview_parts(results: Results) -> list[Part]:
    """The tutorial's size and the epoch; all other tables are on the results page."""
    rows = headline(results)
    return [
        *_head(results),
        headline_table(rows) if rows else "",
        peers_table(rows),
        not_run_sentence(results, rows),
        speed_up_picture(results),
        scaling_picture(results),
        scans_picture(results),
        _quality_picture(results),
        quality_table(results),
        guide_steps_sentence(results),
        training_sentence(results),
        errors_sentence(results),
    ]


def page_parts(results: Results) -> list[Part]:
    """Every table."""
    rows = rows_of(results, "svi_step", "epoch")
    steps = [implementations_table(rows), peers_table(rows), checked_in_parts(rows)] if rows else []
    scans = [scans_table(results), floors_table(results), sweep_table(results)]
    return [
        *_head(results),
        *_under("Stages", stages_table(results)),
        *_under("Smoke test of the kernels", smoke_table(results["smoke"])),
        *_under("SVI steps", *steps, speed_up_picture(results), scaling_picture(results)),
        *_under("Steps of each guide", guide_steps_table(results)),
        *_under("Training", training_table(results)),
        *_under("Training to a quality", quality_table(results), _quality_picture(results)),
        *_under("Scans", *scans, scans_picture(results)),
        *_under("Rowwise ops", rowwise_table(results), roofline_table(results)),
        *_under("Kernels of a step", *profile_tables(results)),
        *_under("Tiles of the launches of a step", tiles_table(results)),
        *_under("Errors", errors_table(results)),
        *_under("Skipped", not_run_table(results)),
    ]


def _head(results: Results) -> list[str]:
    return [not_ok(results), replaced_sentence(results), where_and_with_what(results, AGAINST)]


def _under(heading: str, *parts: Part) -> list[Part]:
    """The heading and the parts; nothing if all parts are empty."""
    return [f"### {heading}", *parts] if any(parts) else []


def headline(results: Results) -> list[Row]:
    """The epoch, and SVI steps at the tutorial's size; steps of other sizes vary along a single axis."""
    steps = [row for row in rows_of(results, "svi_step") if len(row["extra"].get("along", {})) != 1]
    return steps + rows_of(results, "epoch")


def speed_up_picture(results: Results) -> Picture | str:
    """Speed-ups over the first baseline; empty if nothing was timed interleaved with a baseline."""
    rows = headline(results)
    if first_baseline(rows) is None:
        return ""
    draw = partial(speed_up_plot, rows, results["meta"])
    return Picture(
        f"{results['suite']}-svi_step.png", f"How many times faster, suite {results['suite']}", draw
    )


def scaling_picture(results: Results) -> Picture | str:
    """Times along each axis, in the most frequent precision; empty if no axis has two sizes."""
    placed = [row for row in rows_of(results, "svi_step") if row["extra"].get("along")]
    precisions = [precision_of(row) for row in placed]
    most = max(precisions, key=precisions.count, default="")
    rows = [row for row in placed if precision_of(row) == most]
    axes = [axis for axis in axes_of(rows) if len(places_on(rows, axis)) > 1]
    if not axes:
        return ""
    suite = results["suite"]
    shows = f"Milliseconds over {', '.join(axes)}, suite {suite}" + (f", {most}" if most else "")
    return Picture(f"{suite}-scaling.png", shows, partial(scaling_plot, rows, axes, results["meta"]))


def _quality_picture(results: Results) -> Picture | str:
    return quality_picture(results, f"{results['suite']}-{QUALITY}.png")


# --- stages -----------------------------------------------------------------------------------------


def not_ok(results: Results) -> str:
    """In bold, the checking stages that failed or did not run; empty if there are none."""
    stages = {stage["name"]: stage for stage in results["stages"]}
    expected = [name for name in CHECKING if name == SMOKE or name in stages]
    failed = [f"{name} ({_how_ended(stages.get(name))})" for name in expected if not _is_ok(stages.get(name))]
    return f"**Not ok in this run: {'; '.join(failed)}.**" if failed else ""


def _is_ok(stage: Row | None) -> bool:
    return stage is not None and stage["ok"] is True


def _how_ended(stage: Row | None) -> str:
    """The first line of the error."""
    if stage is None:
        return "did not run"
    lines = (stage["error"] or "").splitlines() or ["no reason given"]
    return cell(lines[0])


def stages_table(results: Results) -> str:
    """A row for each stage: its result, details and duration."""
    lines = []
    for stage in results["stages"]:
        ended = "ok" if _is_ok(stage) else f"**not ok**: {_how_ended(stage)}"
        name = RENAMED.get(stage["name"], stage["name"])
        lines.append([name, ended, cell(_found(stage["detail"])), f"{stage['seconds']:.0f}"])
    return table(["stage", "result", "details", "seconds"], lines, texts=3)


def _found(detail: dict[str, Any]) -> str:
    """The counts of tests, and the number of clusters that run concurrently."""
    found = [lines[-1].strip("= ") for name, lines in detail.items() if name.startswith("tests") and lines]
    if "clusters_at_once" in detail:
        counts = [f"{count} of {size}" for size, count in detail["clusters_at_once"].items()]
        found.append(f"concurrent clusters: {', '.join(counts)} blocks")
    return "; ".join(found)


# --- skipped ----------------------------------------------------------------------------------------


def not_run_sentence(results: Results, rows: Sequence[Row]) -> str:
    """The implementations skipped in the cases of ``rows``, or in all cases; empty if there are none."""
    cases = {EVERYWHERE, *(row["case"] for row in rows)}
    skipped = [row for row in results["not_run"] if row["case"] in cases]
    return " ".join(f"Skipped: {row['impl']} in {row['case']}; {_last_line(row['why'])}." for row in skipped)


def not_run_table(results: Results) -> str:
    """A row for each skipped implementation; empty if nothing was skipped."""
    if not results["not_run"]:
        return ""
    lines = [[cell(row["case"]), cell(row["impl"]), _last_line(row["why"])] for row in results["not_run"]]
    return table(["case", "implementation", "reason"], lines, texts=3)


def _last_line(why: str) -> str:
    """The last line of a traceback, which is the error itself."""
    return cell(why.strip().splitlines()[-1])
