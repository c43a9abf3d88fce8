"""A plot of a training run's losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmm_fast._figures import GRID, INK, PALETTE, decorate
from dmm_fast.check import describe, fail, kind, number


def training_curve(metrics: Sequence[Mapping[str, float]]) -> Figure:
    """Negative ELBO in nats per time step over the epochs, for training, validation and test.

    Args:
        metrics: the lines of ``metrics.jsonl``: ``epoch`` and ``train``, and ``valid`` and ``test`` for
            epochs in which the model was evaluated.

    Raises:
        TypeError: ``metrics`` is not a sequence of dicts of numbers.
        ValueError: ``metrics`` is empty, or a line lacks ``epoch`` or a loss.
    """
    _check_metrics(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, label, colour in (
        ("train", "training (annealed)", PALETTE[-1]),
        ("valid", "validation", PALETTE[3]),
        ("test", "test", PALETTE[0]),
    ):
        points = [(line["epoch"] + 1, line[name]) for line in metrics if name in line]
        if points:
            marker = "" if name == "train" and len(points) > 1 else "o"
            xs, ys = zip(*points, strict=True)
            ax.plot(xs, ys, color=colour, label=label, marker=marker, markersize=4, linewidth=1.6)
    # The loss falls from 60 nats and more in the first epochs, which would flatten the rest of the curve.
    settled = metrics[len(metrics) // 10 :]
    losses = [line[name] for line in settled for name in ("train", "valid", "test") if name in line]
    margin = 0.05 * (max(losses) - min(losses))
    if margin > 0:
        ax.set_ylim(min(losses) - margin, max(losses) + margin)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlabel("epochs", color=INK)
    ax.set_ylabel("negative ELBO, nats per time step", color=INK)
    decorate(ax, "Training")
    ax.grid(axis="x", color=GRID, linewidth=0.8)
    ax.legend(frameon=False)
    return figure


def _check_metrics(metrics: Sequence[Mapping[str, float]]) -> None:
    if not isinstance(metrics, tuple | list):
        fail("metrics", "a sequence of dicts", describe(metrics), TypeError)
    if not metrics:
        fail("metrics", "at least one epoch", "none")
    for place, line in enumerate(metrics):
        kind(f"metrics[{place}]", line, Mapping)
        drawn = [name for name in ("train", "valid", "test") if name in line]
        if "epoch" not in line or not drawn:
            fail(f"metrics[{place}]", "an epoch and a loss", str(list(line))[:80])
        for name in ("epoch", *drawn):
            number(f"metrics[{place}].{name}", line[name])
