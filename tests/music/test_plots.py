"""Plots: sizes, colours and positions, and no global state."""

from pathlib import Path

import matplotlib._pylab_helpers
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dmm_fast._figures import PALETTE
from dmm_fast.music import Panel, compare, note_range, piano_roll, save_png
from dmm_fast.training import training_curve


def make_roll(T: int = 20) -> torch.Tensor:
    roll = torch.zeros(T, 88)
    roll[:, [39, 43, 46, 51]] = 1  # C4 E4 G4 C5
    return roll


def colours(figure: Figure) -> set[tuple[int, ...]]:
    FigureCanvasAgg(figure).draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(int(c) for c in colour) for colour in found[counts > 200]}


def as_bytes(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * c) for c in to_rgb(colour))


def test_png_has_the_size_asked_for_and_is_not_blank(tmp_path: Path) -> None:
    figure = compare([Panel("one", make_roll()), Panel("two", make_roll())], boundary=8)
    save_png(tmp_path / "a.png", figure, dpi=50)
    image = matplotlib.image.imread(tmp_path / "a.png")
    width, height = figure.get_size_inches() * 50
    assert image.shape[:2] == (round(height), round(width))
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_no_global_figure(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", compare([Panel("", make_roll())]), dpi=20)
    assert not matplotlib._pylab_helpers.Gcf.figs


def test_voices_are_coloured_from_the_top() -> None:
    ax = Figure().subplots()
    roll = make_roll()
    piano_roll(ax, roll)
    (image,) = ax.images
    drawn = image.get_array()
    assert drawn is not None
    assert [drawn[note, 0] for note in (51, 46, 43, 39)] == [1, 2, 3, 4]
    assert drawn.mask.sum() == 20 * 84
    assert {as_bytes(colour) for colour in PALETTE[:4]} <= colours(ax.figure)


def test_probabilities_are_drawn_as_intensity() -> None:
    ax = Figure().subplots()
    piano_roll(ax, make_roll() * 0.5)
    (image,) = ax.images
    assert np.asarray(image.get_array()).max() == 0.5
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_octaves_are_named_at_their_c_and_time_counts_steps() -> None:
    ax = Figure().subplots()
    piano_roll(ax, make_roll(20))
    labels = {label.get_text(): position for label, position in
              zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}  # fmt: skip
    assert labels == {"C4": 60, "C5": 72}
    # MIDI 60 is column 39: its row of the image must lie at 60.
    left, right, bottom, top = ax.images[0].get_extent()
    assert (left, right) == (0.5, 20.5)
    assert bottom + 39 + 0.5 == 60
    assert top - bottom == 88


def test_note_range_covers_the_music_and_at_least_an_octave() -> None:
    assert note_range([make_roll()]) == (57, 75)
    single = torch.zeros(4, 88)
    single[0, 0] = 1
    assert note_range([single]) == (18, 30)
    assert note_range([torch.zeros(4, 88)]) == (60, 72)


def test_comparison_shares_its_axes() -> None:
    low = torch.zeros(20, 88)
    low[:, 10] = 1
    figure = compare([Panel("one", make_roll()), Panel("two", low)], boundary=8)
    upper, lower = figure.axes
    assert upper.get_ylim() == lower.get_ylim()
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    assert upper.lines[0].get_xdata()[0] == 8.5


def test_training_curve_shows_what_was_measured() -> None:
    metrics: list[dict[str, float]] = [{"epoch": e, "train": 10.0 - e} for e in range(4)]
    metrics[2] |= {"valid": 9.0, "test": 9.5}
    (ax,) = training_curve(metrics).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["validation"] == [[3.0, 9.0]]
    assert lines["test"] == [[3.0, 9.5]]
    assert lines["training (annealed)"] == [[1.0, 10.0], [2.0, 9.0], [3.0, 8.0], [4.0, 7.0]]


def test_training_curve_is_not_flattened_by_the_first_epochs() -> None:
    metrics: list[dict[str, float]] = [
        {"epoch": e, "train": 8 + 60 * 0.5**e, "test": 8 + 60 * 0.5**e} for e in range(40)
    ]
    (ax,) = training_curve(metrics).axes
    low, high = ax.get_ylim()
    assert low < 8 < high < 8 + 60 * 0.5**3
    assert high > 8 + 60 * 0.5**4


def test_refusals() -> None:
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=r"roll: expected a tensor of shape \(T, D\)"):
        piano_roll(ax, torch.zeros(3))
    with pytest.raises(ValueError, match="roll: expected entries between 0 and 1"):
        piano_roll(ax, torch.full((3, 88), 1.5))
    with pytest.raises(ValueError, match="roll: expected entries between 0 and 1"):
        piano_roll(ax, torch.full((3, 88), torch.nan))
    with pytest.raises(ValueError, match="panels"):
        compare([])
    with pytest.raises(ValueError, match="metrics"):
        training_curve([])
