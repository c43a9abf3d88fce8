"""Training to a target test NLL: the time each implementation takes, and its curve over wall time."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.markdown import NOTHING, milliseconds, table, three_digits
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import Meta, legend_below, log_scale, new_figure
from benchmarks.report.results import QUALITY, Results, Row, distinct, rows_of, where_and_with_what

# Upper end of the plot in units of the target; higher only if an implementation never comes below it. The
# first evaluations are far off and would flatten the curves.
HEADROOM = 1.4
# Curves of fewer evaluations than this are drawn with markers.
FEW = 60


def overview_parts(results: Results) -> list[Part]:
    """The parts of a file that holds this suite alone."""
    shown = quality_picture(results, f"{results['suite']}.png")
    return [where_and_with_what(results), quality_table(results), shown]


def page_parts(results: Results) -> list[Part]:
    """The same parts as in the README."""
    return overview_parts(results)


def quality_table(results: Results) -> str:
    """A row for each implementation; empty if nothing was trained."""
    rows = rows_of(results, QUALITY)
    if not rows:
        return ""
    titles = ["case", "implementation", "target", "seconds to it", "epochs to it", "steps to it"]
    titles += ["test NLL at the end", "lowest", "negative ELBO at the end"]
    titles += ["seconds in all", "epochs in all", "median step, ms"]
    lines = []
    for row in rows:
        extra, reached = row["extra"], reached_at(row)
        to_it = ["not reached", NOTHING, NOTHING]
        if reached:
            to_it = [three_digits(reached["seconds"]), str(reached["epoch"]), str(reached["step"])]
        line = [row["case"], row["impl"], f"{extra['target']:g}", *to_it]
        nats = [extra[name] for name in ("last_test", "best_test", "last_test_elbo")]
        line += [NOTHING if value is None else f"{value:.3f}" for value in nats]
        line += [three_digits(extra["seconds"]), str(extra["epochs"]), milliseconds(row["median_ms"])]
        lines.append(line)
    data = ", ".join(distinct(row["extra"]["data"] for row in rows))
    return "\n\n".join([table(titles, lines, texts=2), _legend(data)])


def reached_at(row: Row) -> Row | None:
    """The first evaluation whose test NLL is at most the target; None if there is none."""
    extra = row["extra"]
    return next((point for point in extra["curve"] if point["test"] <= extra["target"]), None)


def _legend(data: str) -> str:
    return (
        f"Trained on {data}, interleaved, each for the same wall time without evaluation. NLL: by "
        "importance sampling with 100 draws; ELBO: of one draw; nats a time step. The target is reached at "
        "the first evaluation whose test NLL does not exceed it."
    )


def quality_picture(results: Results, name: str) -> Picture | str:
    """The curves of all training runs; empty if nothing was trained."""
    rows = rows_of(results, QUALITY)
    if not rows:
        return ""
    shows = f"Test NLL over wall seconds, suite {results['suite']}"
    return Picture(name, shows, partial(quality_plot, rows, results["meta"]))


def quality_plot(rows: Sequence[Row], meta: Meta) -> Figure:
    """A panel for each case: a line for each implementation, the target dashed, a ring at its crossing."""
    cases = distinct(row["case"] for row in rows)
    figure = new_figure(8, 0.8 + 3.8 * len(cases), meta)
    grid = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for case, axes in zip(cases, grid, strict=True):
        _curves(axes, [row for row in rows if row["case"] == case])
        axes.set_title(case, loc="left", fontsize=10)
    grid[-1].set_xlabel("wall seconds of training")
    legend_below(figure)
    return figure


def _curves(axes: Axes, rows: Sequence[Row]) -> None:
    targets = distinct(row["extra"]["target"] for row in rows)
    best = [nll for nll in map(_lowest, rows) if nll is not None]
    top = max([HEADROOM * max(targets), *(1.1 * nll for nll in best)])
    for row in rows:
        points = row["extra"]["curve"]
        seconds, test = [p["seconds"] for p in points], [p["test"] for p in points]
        marker = "." if len(points) < FEW else ""
        (line,) = axes.plot(seconds, test, linewidth=1.6, marker=marker, label=row["impl"])
        reached = reached_at(row)
        if reached:
            _ring(axes, reached, line.get_color())
    for target in targets:
        axes.axhline(target, color="0.3", linestyle="--", linewidth=1, label=f"target {target:g}")
    log_scale(axes)
    seen = [p for row in rows for p in row["extra"]["curve"] if p["test"] <= top and p["seconds"] > 0]
    if seen:
        seconds = [p["seconds"] for p in seen]
        axes.set_xlim(0.8 * min(seconds), 1.6 * max(seconds))
    lowest = min([*targets, *(p["test"] for p in seen)])
    axes.set_ylim(lowest - 0.1 * (top - lowest), top)
    axes.set_ylabel("test NLL, nats a time step")
    axes.grid(visible=True, color="0.92")


def _lowest(row: Row) -> float | None:
    return min((p["test"] for p in row["extra"]["curve"] if math.isfinite(p["test"])), default=None)


def _ring(axes: Axes, reached: Row, colour: Any) -> None:
    """Mark the evaluation that reaches the target, with its seconds."""
    place = reached["seconds"], reached["test"]
    axes.plot(*place, "o", color=colour, markerfacecolor="white", markersize=7)
    text = f"{three_digits(reached['seconds'])} s"
    axes.annotate(text, place, (5, 5), textcoords="offset points", color=colour, fontsize=9)
