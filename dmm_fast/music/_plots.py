"""Plots of piano rolls, in given axes or in new figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dmm_fast._figures import INK, PALETTE, decorate
from dmm_fast.check import dense, describe, elements, fail, int_between, kind
from dmm_fast.data._piano_rolls import LOWEST_NOTE

_MARGIN = 3  # rows shown above the highest and below the lowest note
_OCTAVE, _HIGHEST = 12, 127  # in semitones, and the highest MIDI note


class Panel(NamedTuple):
    """A piano roll in a comparison.

    Attributes:
        title: the panel's title.
        roll: ``[T, D]``, 0 or 1, or probabilities.
    """

    title: str
    roll: Tensor


def piano_roll(
    ax: Axes,
    roll: Tensor,
    *,
    title: str = "",
    lowest_note: int = LOWEST_NOTE,
    notes: tuple[int, int] | None = None,
) -> None:
    """Draw a piano roll: time in steps to the right, pitch upwards, octaves labelled at their C.

    A roll of zeros and ones is coloured by voice, counted from the highest note of each step; any
    other is drawn as an intensity between 0 and 1.

    Args:
        ax: the axes to draw into.
        roll: ``[T, D]`` with entries between 0 and 1.
        title: text above the roll.
        lowest_note: MIDI number of column 0.
        notes: the MIDI notes at the lower and the upper edge; by default the range of the music.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``roll`` has the wrong shape, is empty or has values outside [0, 1], or a note is not a
            MIDI note.
    """
    kind("ax", ax, Axes)
    kind("title", title, str)
    values = _values(roll)
    low, high = _edges(notes) if notes is not None else note_range([roll], lowest_note)
    int_between("lowest_note", lowest_note, 0, _HIGHEST)
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    image = _voices(values) if binary else values
    ax.imshow(
        np.ma.masked_equal(image.T, 0) if binary else image.T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, len(values) + 0.5, lowest_note - 0.5, lowest_note + values.shape[1] - 0.5),
        cmap=ListedColormap(PALETTE) if binary else _intensity_map(),
        vmin=1 if binary else 0,
        vmax=len(PALETTE) if binary else 1,
        zorder=2,
    )
    ax.set_ylim(low - 0.5, high + 0.5)
    octaves = [note for note in range(low, high + 1) if note % 12 == 0]
    ax.set_yticks(octaves, labels=[f"C{note // 12 - 1}" for note in octaves])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 8, 10]))
    ax.set_xlabel("time step", color=INK)
    decorate(ax, title)


def note_range(rolls: Iterable[Tensor], lowest_note: int = LOWEST_NOTE) -> tuple[int, int]:
    """The lowest and the highest MIDI note to show, at least one octave apart.

    Args:
        rolls: piano rolls ``[T, D]``; an entry above 0.05 counts as sounding.
        lowest_note: MIDI number of column 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no roll, or a roll has the wrong shape, is empty or has values outside [0, 1].
    """
    int_between("lowest_note", lowest_note, 0, _HIGHEST)
    sounding = [
        torch.from_numpy(np.nonzero((_values(roll) > 0.05).any(0))[0] + lowest_note)
        for roll in elements("rolls", rolls, "piano rolls")
    ]
    if not sounding:
        fail("rolls", "at least one", "none")
    notes = torch.cat(sounding)
    if len(notes) == 0:
        return 60, 72
    low, high = int(notes.min()) - _MARGIN, int(notes.max()) + _MARGIN
    return low, max(high, low + _OCTAVE)


def compare(
    panels: Sequence[Panel], *, lowest_note: int = LOWEST_NOTE, boundary: int | None = None
) -> Figure:
    """Piano rolls one below the other on the same axes, e.g. a piece and its reconstruction.

    Args:
        panels: the piano rolls to draw, from top to bottom.
        lowest_note: MIDI number of column 0.
        boundary: draw a line after this many steps, e.g. where a forecast begins.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no panel, or a roll is invalid.
    """
    if not isinstance(panels, tuple | list):
        fail("panels", "a sequence of panels", describe(panels), TypeError)
    if not panels:
        fail("panels", "at least one", "none")
    for place, panel in enumerate(panels):
        kind(f"panels[{place}]", panel, Panel)
    if boundary is not None:
        int_between("boundary", boundary, 0)
    notes = note_range([panel.roll for panel in panels], lowest_note)
    figure = Figure(figsize=(10, 0.4 + 2.9 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        piano_roll(ax, panel.roll, title=panel.title, lowest_note=lowest_note, notes=notes)
        if boundary is not None:
            ax.axvline(boundary + 0.5, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        ax.label_outer()
    return figure


def _edges(notes: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(notes, tuple | list) or len(notes) != 2:
        fail("notes", "(low, high)", describe(notes), TypeError)
    low, high = (int_between("notes", note, -_MARGIN, _HIGHEST + _OCTAVE) for note in notes)
    if low >= high:
        fail("notes", "(low, high) with low < high", str(notes))
    return low, high


def _values(roll: Tensor) -> np.ndarray:
    if dense("roll", roll).dim() != 2 or roll.numel() == 0 or roll.is_complex():
        fail("roll", "a tensor of shape (T, D), not empty", describe(roll))
    values = roll.detach().to("cpu", torch.float64).numpy()
    if not ((values >= 0) & (values <= 1)).all():
        fail("roll", "entries between 0 and 1", f"{values.min()} to {values.max()}")
    return values


def _voices(values: np.ndarray) -> np.ndarray:
    """Voice numbers: 1 for the highest note of a step, 2 for the next, and so on; 0 where no note sounds."""
    from_the_top = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(from_the_top, len(PALETTE)) * values


def _intensity_map() -> ListedColormap:
    """A colour map from white to the ink blue of the voices, with even steps in lightness."""
    white, blue = np.ones(3), np.array(to_rgb("#1f3f77"))
    steps = np.linspace(0, 1, 256)[:, None]
    return ListedColormap(white + (blue - white) * steps)
