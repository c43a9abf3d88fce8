"""Plots of results. Each picture names, in its metadata, the results file it was drawn from."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

SOURCE_KEY = "Source"
MARKERS = "osD^vPX"


def speed_up_plot(results: dict[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Horizontal bars: times faster than the baseline, median with lowest and highest round."""
    rows = results["cases"]
    baseline = next(iter(rows[0]["extra"]["speed_up"]))
    names = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(rows) + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(names), 1, squeeze=False, sharex=True)
    for axes, name in zip(grid[:, 0], names, strict=True):
        mine = [row for row in rows if row["case"] == name]
        faster = [row["extra"]["speed_up"][baseline] for row in mine]
        medians = [f["median"] for f in faster]
        spread = [
            [f["median"] - f["low"] for f in faster],
            [f["high"] - f["median"] for f in faster],
        ]
        bars = axes.barh([row["impl"] for row in mine], medians, xerr=spread, capsize=3, color="#4878a8")
        labels = [
            f"{f['median']:.2f}x   ({row['median_ms']:.0f} ms)" for f, row in zip(faster, mine, strict=True)
        ]
        axes.bar_label(bars, labels, padding=6, fontsize=9)
        axes.set_title(name, loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.axvline(1.0, color="0.5", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    highest = max(row["extra"]["speed_up"][baseline]["high"] for row in rows)
    grid[-1, 0].set_xlim(0, 1.35 * highest)
    grid[-1, 0].set_xlabel(f"times faster than {baseline} (median, lowest and highest round)")
    _save(figure, results, path, metadata)


def scaling_plot(
    results: dict[str, Any], axes_names: Sequence[str], path: Path, metadata: Mapping[str, str]
) -> None:
    """A panel for each axis, both scales logarithmic: median, lowest and highest round in ms."""
    figure = Figure(figsize=(4 * len(axes_names), 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row["impl"] for row in results["cases"]))
    grid = figure.subplots(1, len(axes_names), squeeze=False, sharey=True)[0]
    for axes, along in zip(grid, axes_names, strict=True):
        on_axis = [row for row in results["cases"] if along in row["extra"].get("along", {})]
        on_axis.sort(key=lambda row: row["extra"]["along"][along])
        for name, marker in zip(names, itertools.cycle(MARKERS)):
            mine = [row for row in on_axis if row["impl"] == name]
            medians = [row["median_ms"] for row in mine]
            spread = [
                [row["median_ms"] - row["min_ms"] for row in mine],
                [row["max_ms"] - row["median_ms"] for row in mine],
            ]
            places = [row["extra"]["along"][along] for row in mine]
            axes.errorbar(places, medians, yerr=spread, marker=marker, markersize=4, capsize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel=along)
        axes.set_title(_held_fixed(results["cases"], along), fontsize=9)
        places = sorted({row["extra"]["along"][along] for row in on_axis})
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("ms a step")
    grid[0].legend(frameon=False)
    _save(figure, results, path, metadata)


def _held_fixed(rows: Sequence[dict[str, Any]], along: str) -> str:
    """Where the other axes stand: at the point that lies on all of them."""
    meeting = max((row["extra"].get("along", {}) for row in rows), key=len)
    return ", ".join(f"{axis}={value}" for axis, value in meeting.items() if axis != along)


def _save(figure: Figure, results: dict[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    meta = results["meta"]
    figure.suptitle(f"{meta['device']}, threads: {meta['threads']}, commit {meta['commit']}", fontsize=9)
    figure.savefig(path, dpi=120, metadata=dict(metadata))


def plot_source(path: Path) -> str | None:
    """The name of the results file a plot was drawn from; None where there is no plot."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        source = image.info.get(SOURCE_KEY)
    return source if isinstance(source, str) else None
