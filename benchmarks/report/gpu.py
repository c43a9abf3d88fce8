"""The sections of a run on a GPU: how its checks ended, then SVI steps, training, scans and single ops."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.report.accuracy import errors_sentence, errors_table
from benchmarks.report.guides import guide_steps_sentence, guide_steps_table
from benchmarks.report.markdown import cell, table
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import first_baseline, places_on, scaling_plot, speed_up_plot
from benchmarks.report.profiles import profile_tables
from benchmarks.report.quality import quality_picture, quality_table
from benchmarks.report.results import QUALITY, Results, Row, precision_of, rows_of, where_and_with_what
from benchmarks.report.rowwise import ceilings_table, rowwise_table
from benchmarks.report.scans import floors_table, scans_picture, scans_table, sweep_table
from benchmarks.report.smoke import replaced_sentence, smoke_table
from benchmarks.report.steps import (
    axes_of,
    checked_in_parts,
    contestants_table,
    headline_table,
    peers_table,
)
from benchmarks.report.tiles import tiles_table
from benchmarks.report.training import training_sentence, training_table

# Without these, numbers are worth less: a reader is told first where one of them did not end well. A run may
# leave out all but the smoke test.
SMOKE = "smoke"
CHECKING = (SMOKE, "kernels", "errors", "replays", "tests")
# Where a contestant that could not be set up was not run.
EVERYWHERE = "all"
AGAINST = "against the baseline and against float64"


def readme_parts(results: Results) -> list[Part]:
    """The tutorial's size and the epoch; everything else on the page."""
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
    steps = [contestants_table(rows), peers_table(rows), checked_in_parts(rows)] if rows else []
    scans = [scans_table(results), floors_table(results), sweep_table(results)]
    return [
        *_head(results),
        *_under("How the stages ended", stages_table(results)),
        *_under("Smoke test of the kernels", smoke_table(results["smoke"])),
        *_under("SVI steps", *steps, speed_up_picture(results), scaling_picture(results)),
        *_under("Steps of each guide", guide_steps_table(results)),
        *_under("Training", training_table(results)),
        *_under("Training to a quality", quality_table(results), _quality_picture(results)),
        *_under("Scans", *scans, scans_picture(results)),
        *_under("Rowwise ops", rowwise_table(results), ceilings_table(results)),
        *_under("Kernels of a step", *profile_tables(results)),
        *_under("Tiles of the launches of a step", tiles_table(results)),
        *_under("Errors", errors_table(results)),
        *_under("What was not run", not_run_table(results)),
    ]


def _head(results: Results) -> list[str]:
    return [not_ok(results), replaced_sentence(results), where_and_with_what(results, AGAINST)]


def _under(heading: str, *parts: Part) -> list[Part]:
    """Nothing where all of the parts are empty."""
    return [f"### {heading}", *parts] if any(parts) else []


def headline(results: Results) -> list[Row]:
    """The epoch, and SVI steps at the tutorial's size: all others lie on one axis alone."""
    steps = [row for row in rows_of(results, "svi_step") if len(row["extra"].get("along", {})) != 1]
    return steps + rows_of(results, "epoch")


def speed_up_picture(results: Results) -> Picture | str:
    """Empty where nothing was timed in turn with a baseline."""
    rows = headline(results)
    if first_baseline(rows) is None:
        return ""
    draw = partial(speed_up_plot, rows, results["meta"])
    return Picture(
        f"{results['suite']}-svi_step.png", f"How many times faster, suite {results['suite']}", draw
    )


def scaling_picture(results: Results) -> Picture | str:
    """In the precision that most rows on an axis have; empty where no axis has two places."""
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


# --- how the stages ended ---------------------------------------------------------------------------


def not_ok(results: Results) -> str:
    """In bold, the checking stages that did not end well or did not run; empty for none."""
    stages = {stage["name"]: stage for stage in results["stages"]}
    expected = [name for name in CHECKING if name == SMOKE or name in stages]
    told = [f"{name} ({_how_ended(stages.get(name))})" for name in expected if not _is_ok(stages.get(name))]
    return f"**Not ok in this run: {'; '.join(told)}.**" if told else ""


def _is_ok(stage: Row | None) -> bool:
    return stage is not None and stage["ok"] is True


def _how_ended(stage: Row | None) -> str:
    """The first line of what went wrong."""
    if stage is None:
        return "did not run"
    lines = (stage["error"] or "").splitlines() or ["no reason given"]
    return cell(lines[0])


def stages_table(results: Results) -> str:
    """Each stage, how it ended, and what it says of itself."""
    lines = []
    for stage in results["stages"]:
        ended = "ok" if _is_ok(stage) else f"**not ok**: {_how_ended(stage)}"
        lines.append([stage["name"], ended, cell(_found(stage["detail"])), f"{stage['seconds']:.0f}"])
    return table(["stage", "ended", "found", "seconds"], lines, texts=3)


def _found(detail: dict[str, Any]) -> str:
    """Counts of tests, and of clusters that run at a time."""
    told = [lines[-1].strip("= ") for name, lines in detail.items() if name.startswith("tests") and lines]
    if "clusters_at_once" in detail:
        counts = [f"{count} of {size}" for size, count in detail["clusters_at_once"].items()]
        told.append(f"clusters at once: {', '.join(counts)} blocks")
    return "; ".join(told)


# --- what was left out ------------------------------------------------------------------------------


def not_run_sentence(results: Results, rows: Sequence[Row]) -> str:
    """Who is missing among ``rows``, or everywhere; empty for nobody."""
    cases = {EVERYWHERE, *(row["case"] for row in rows)}
    left_out = [one for one in results["not_run"] if one["case"] in cases]
    return " ".join(f"Not run: {one['impl']} in {one['case']}; {_last_line(one['why'])}." for one in left_out)


def not_run_table(results: Results) -> str:
    """All that was left out; empty for nothing."""
    if not results["not_run"]:
        return ""
    lines = [[cell(one["case"]), cell(one["impl"]), _last_line(one["why"])] for one in results["not_run"]]
    return table(["what", "implementation", "why"], lines, texts=3)


def _last_line(why: str) -> str:
    """Of a traceback the error itself."""
    return cell(why.strip().splitlines()[-1])
