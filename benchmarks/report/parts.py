"""Parts of a section: Markdown, and pictures that are saved beside the results."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure


class Picture(NamedTuple):
    """A plot: its file name, its caption, and a function that draws it."""

    name: str
    shows: str
    draw: Callable[[], Figure]


Part = str | Picture  # empty text is skipped
