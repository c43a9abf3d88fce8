"""Plots of results. Each picture names, in its metadata, the results file it was drawn from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

SOURCE_KEY = "Source"


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
