"""What a section is made of: Markdown, and pictures that are drawn beside the results."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure


class Picture(NamedTuple):
    """A plot: the name of its file, what it shows, and how it is drawn."""

    name: str
    shows: str
    draw: Callable[[], Figure]


Part = str | Picture  # an empty text is left out
