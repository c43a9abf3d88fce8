"""Style and PNG output of figures, without pyplot and hence without global figures or a display."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dmm_fast._io import atomic_write
from dmm_fast.check import int_between, kind
from dmm_fast.check import path as check_path

PALETTE = ("#c44e52", "#dd8f45", "#4c9f70", "#3b6fb6", "#7d5ba6", "#6b7280")
INK = "#2b2f36"
GRID = "#e3e6ea"
_LARGEST_DPI = 10_000


def save_png(path: str | Path, figure: Figure, *, dpi: int = 150) -> None:
    """Write ``figure`` as a PNG, atomically.

    Raises:
        OSError: the folder is missing or not writable; an earlier file is untouched.
        TypeError: an argument has the wrong type.
        ValueError: ``dpi`` is out of range.
    """
    path = check_path("path", path)
    kind("figure", figure, Figure)
    figure.set_dpi(int_between("dpi", dpi, 1, _LARGEST_DPI))
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def decorate(ax: Axes, title: str) -> None:
    """Add a title and horizontal grid lines to ``ax`` and remove its frame."""
    ax.set_title(title, loc="left", fontsize=11, color=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(GRID)
