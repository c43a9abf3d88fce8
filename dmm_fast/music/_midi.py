"""Piano rolls as standard MIDI files."""

from __future__ import annotations

from pathlib import Path

import mido
import torch
from torch import Tensor

from dmm_fast._io import atomic_write
from dmm_fast.check import dense, describe, fail, int_between, kind, number
from dmm_fast.check import path as check_path
from dmm_fast.data._piano_rolls import LOWEST_NOTE

TICKS_PER_STEP = 480
"""MIDI ticks in one time step; a step is one beat."""

_HIGHEST_MIDI_NOTE = 127
_LONGEST_BEAT = 2**24 - 1  # microseconds: a MIDI tempo has three bytes


def to_midi(
    roll: Tensor,
    *,
    tempo: float = 100.0,
    program: int = 0,
    velocity: int = 80,
    lowest_note: int = LOWEST_NOTE,
) -> mido.MidiFile:
    """A piano roll as a MIDI file with one track; consecutive steps of a note become one held note.

    Args:
        roll: ``[T, D]``, any dtype, entries 0 or 1; column d is MIDI note ``lowest_note + d``.
        tempo: time steps (beats) per minute, at least 3.6.
        program: General MIDI instrument, 0 to 127 (0 piano, 19 church organ, 52 choir).
        velocity: MIDI velocity of every note, 1 to 127.
        lowest_note: MIDI number of column 0.

    Returns:
        A ``mido.MidiFile`` with :data:`TICKS_PER_STEP` ticks per step. Its length is T steps, even if the
        roll ends in a rest.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape or is out of range.
    """
    _check(roll, tempo, program, velocity, lowest_note)
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
    track.append(mido.Message("program_change", program=program))
    held = roll.detach().to("cpu", torch.int8)
    silence = held.new_zeros(1, held.shape[1])
    # change[t] is +1 if a note starts at step t and -1 if it ended at step t - 1.
    change = torch.diff(held, dim=0, prepend=silence, append=silence)
    clock = 0
    for step, column in torch.nonzero(change).tolist():
        event = "note_on" if change[step, column] > 0 else "note_off"
        now = step * TICKS_PER_STEP
        note = lowest_note + column
        track.append(mido.Message(event, note=note, velocity=velocity, time=now - clock))
        clock = now
    track.append(mido.MetaMessage("end_of_track", time=len(roll) * TICKS_PER_STEP - clock))
    return mido.MidiFile(type=0, ticks_per_beat=TICKS_PER_STEP, tracks=[track])


def write_midi(path: str | Path, midi: mido.MidiFile) -> None:
    """Write a MIDI file atomically.

    Raises:
        OSError: the folder is missing or not writable; an earlier file is untouched.
        TypeError: ``path`` is not a path, or ``midi`` is not a ``mido.MidiFile``.
    """
    kind("midi", midi, mido.MidiFile)
    with atomic_write(check_path("path", path)) as file:
        midi.save(file=file)


def _check(roll: Tensor, tempo: float, program: int, velocity: int, lowest_note: int) -> None:
    if dense("roll", roll).dim() != 2 or roll.is_complex():
        fail("roll", "a tensor of shape (T, D)", describe(roll))
    if not bool(((roll == 0) | (roll == 1)).all()):
        fail("roll", "entries 0 or 1", f"others between {roll.min()} and {roll.max()}")
    if number("tempo", tempo, "at least 3.6 steps a minute") < 60e6 / _LONGEST_BEAT:
        fail("tempo", "at least 3.6 steps a minute", str(tempo))
    int_between("program", program, 0, 127)
    int_between("velocity", velocity, 1, 127)
    int_between("lowest_note", lowest_note, 0, _HIGHEST_MIDI_NOTE)
    highest = lowest_note + roll.shape[1] - 1
    if highest > _HIGHEST_MIDI_NOTE:
        fail("roll", "MIDI notes 0 to 127", f"notes {lowest_note} to {highest}")
