"""Plots of SVI steps. Each picture names, in its metadata, the results file it was drawn from."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from benchmarks.report.markdown import ratio, three_digits
from benchmarks.report.results import Row, case_and_precision

SOURCE_KEY = "Source"
MARKERS = "osD^vPX*<"
OURS, OTHERS = "#c8553d", "#4878a8"
OUR_NAME = "dmm_fast"
LINES = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")
OUR_LINES = ("#d62728", "#f4907a", "#d6458f", "#7a0c12")
# Ratios further apart than this are drawn on a logarithmic scale.
WIDE = 20.0

Meta = dict[str, Any]


def speed_up_plot(rows: Sequence[Row], meta: Meta) -> Figure:
    """Horizontal bars: times faster than the first baseline, median with lowest and highest round.

    Rows that were not timed interleaved with it are skipped.
    """
    baseline = first_baseline(rows)
    groups = list(_cases([row for row in rows if baseline in row["extra"]["speed_up"]]))
    count = sum(len(mine) for _, mine in groups)
    figure = new_figure(8, 1.0 + 0.34 * count + 0.5 * len(groups), meta)
    heights = {"height_ratios": [len(mine) + 0.6 for _, mine in groups]}
    grid = figure.subplots(len(groups), 1, squeeze=False, sharex=True, gridspec_kw=heights)
    ratios = [row["extra"]["speed_up"][baseline] for _, mine in groups for row in mine]
    lowest, highest = min(r["low"] for r in ratios), max(r["high"] for r in ratios)
    wide = highest / lowest > WIDE
    for axes, (name, mine) in zip(grid[:, 0], groups, strict=True):
        _bars(axes, mine, baseline, start=1.0 if wide else 0.0)
        axes.set_title(name, loc="left", fontsize=10)
        if wide:
            log_scale(axes)
    # Room for the labels behind the bars.
    grid[-1, 0].set_xlim((0.8 * min(lowest, 1.0), 10 * highest) if wide else (0, 1.35 * highest))
    grid[-1, 0].set_xlabel(f"times faster than {baseline} (median, lowest and highest round)")
    return figure


def first_baseline(rows: Sequence[Row]) -> str | None:
    """The baseline that the ratios refer to; None if no row has one."""
    return next((baseline for row in rows for baseline in row["extra"]["speed_up"]), None)


def _bars(axes: Axes, rows: Sequence[Row], baseline: str | None, start: float) -> None:
    """Draw bars from ``start``: on a logarithmic scale, which has no zero, from one, the baseline's ratio."""
    faster = [row["extra"]["speed_up"][baseline] for row in rows]
    spread = [[f["median"] - f["low"] for f in faster], [f["high"] - f["median"] for f in faster]]
    names, medians = [row["impl"] for row in rows], [f["median"] for f in faster]
    bars = axes.barh(
        names,
        [median - start for median in medians],
        left=start,
        xerr=spread,
        capsize=3,
        color=[colour(name) for name in names],
    )
    pairs = zip(faster, rows, strict=True)
    labels = [f"{ratio(f['median'])}x   ({three_digits(row['median_ms'])} ms)" for f, row in pairs]
    axes.bar_label(bars, labels, padding=6, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(1.0, color="0.5", linewidth=0.8)


def scaling_plot(rows: Sequence[Row], axes_names: Sequence[str], meta: Meta) -> Figure:
    """A panel for each axis, both scales logarithmic: median, lowest and highest round in ms."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    figure = new_figure(4.2 * len(axes_names), 4 + 0.1 * len(names), meta)
    styles = _styles(names)
    grid = figure.subplots(1, len(axes_names), squeeze=False, sharey=True)[0]
    for axes, along in zip(grid, axes_names, strict=True):
        on_axis = [row for row in rows if along in row["extra"].get("along", {})]
        on_axis.sort(key=lambda row: row["extra"]["along"][along])
        for name in names:
            _line(axes, [row for row in on_axis if row["impl"] == name], along, label=name, **styles[name])
        axes.set(xscale="log", yscale="log", xlabel=along)
        axes.set_title(_held_fixed(rows, along), fontsize=9)
        places = places_on(rows, along)
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, color="0.9")
    grid[0].set_ylabel("ms a step")
    legend_below(figure)
    return figure


def places_on(rows: Sequence[Row], along: str) -> list[int]:
    """The sizes along an axis that have rows, ascending."""
    return sorted({row["extra"]["along"][along] for row in rows if along in row["extra"].get("along", {})})


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A marker and a colour for each name; lines of this package are thicker."""
    ours, others = itertools.cycle(OUR_LINES), itertools.cycle(LINES)
    return {
        name: {"marker": marker, "color": next(ours), "linewidth": 2.2}
        if is_ours(name)
        else {"marker": marker, "color": next(others), "linewidth": 1.2}
        for name, marker in zip(names, itertools.cycle(MARKERS))
    }


def _line(axes: Axes, rows: Sequence[Row], along: str, **style: Any) -> None:
    medians = [row["median_ms"] for row in rows]
    spread = [
        [row["median_ms"] - row["min_ms"] for row in rows],
        [row["max_ms"] - row["median_ms"] for row in rows],
    ]
    places = [row["extra"]["along"][along] for row in rows]
    axes.errorbar(places, medians, yerr=spread, markersize=4, capsize=3, **style)


def _held_fixed(rows: Sequence[Row], along: str) -> str:
    """The sizes of the other axes, which are those of the point common to all axes."""
    meeting = max((row["extra"].get("along", {}) for row in rows), key=len)
    return ", ".join(f"{axis}={value}" for axis, value in meeting.items() if axis != along)


def _cases(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each case, of each precision where rows name one."""
    names = [case_and_precision(row) for row in rows]
    for name in dict.fromkeys(names):
        yield name, [row for row, its in zip(rows, names, strict=True) if its == name]


# --- shared by all plots ----------------------------------------------------------------------------


def new_figure(width: float, height: float, meta: Meta) -> Figure:
    """An empty figure, sizes in inches, titled with the device and the commit of its numbers."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    threads = "" if meta["driver"] else f", threads: {meta['threads']}"
    figure.suptitle(f"{meta['device']}{threads}, commit {meta['commit']}", fontsize=9)
    return figure


def legend_below(figure: Figure) -> None:
    """Add one legend for all panels, in as many columns as fit."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    inches = 0.6 + 0.075 * max(map(len, handles))
    columns = min(len(handles), max(1, int(figure.get_figwidth() / inches)))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def is_ours(name: str) -> bool:
    """True for an implementation of this package."""
    return name.startswith(OUR_NAME)


def colour(name: str) -> str:
    """The bar colour: one for this package, another for all others."""
    return OURS if is_ours(name) else OTHERS


def log_scale(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.tick_params(axis="x", labelsize=8)
    ticks = axes.xaxis
    ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path, source: str) -> None:
    """Save the figure, with the name of its results file in the metadata."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={SOURCE_KEY: source})


def plot_source(path: Path) -> str | None:
    """The name of the results file a plot was drawn from; None if there is no plot."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        source = image.info.get(SOURCE_KEY)
    return source if isinstance(source, str) else None
