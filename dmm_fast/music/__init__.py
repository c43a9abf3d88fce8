"""Plots and MIDI files of piano rolls; needs matplotlib and mido."""

from dmm_fast._figures import save_png
from dmm_fast.music._midi import TICKS_PER_STEP, to_midi, write_midi
from dmm_fast.music._plots import Panel, compare, note_range, piano_roll

__all__ = [
    "TICKS_PER_STEP",
    "Panel",
    "compare",
    "note_range",
    "piano_roll",
    "save_png",
    "to_midi",
    "write_midi",
]
