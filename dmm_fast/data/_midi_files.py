"""Piano rolls read from folders of MIDI files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.data._frames import require
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._piano_rolls import LOWEST_NOTE, NUM_KEYS
from dmm_fast.data._sequences import SequenceSet

MIDI_SUFFIXES = (".mid", ".midi")

_DRUMS = 9  # the channel of percussion, whose notes are not pitches
# Memory of a mido message object, for which a single byte of a file can be enough.
_BYTES_PER_BYTE = 256


class _Note(NamedTuple):
    """A note with its start and end in ticks."""

    key: int
    start: int
    end: int


def read_midi_folder(
    path: str | Path, *, steps_per_beat: int = 4, max_bytes: int = DEFAULT_BYTES
) -> SequenceSet:
    """Read the MIDI files in a folder as piano rolls of 0 and 1, one sequence ``[T, 88]`` per file.

    The files are those ending in ``.mid`` or ``.midi``, sorted by name. Column 0 is MIDI note 21; a key is
    on in the time steps in which it is held, rounded to the nearest step and for at least one. A key that is
    struck again while it sounds, or immediately afterwards, counts as held. Percussion (channel 10) and notes
    outside the 88 keys are ignored, and a file lasts until the end of its longest track.

    Args:
        path: the folder.
        steps_per_beat: number of time steps per quarter note.
        max_bytes: largest amount of memory that the files may take; it is checked before the memory is
            allocated.

    Raises:
        ImportError: mido is not installed.
        OSError: the folder or a file cannot be opened.
        TypeError: an argument has the wrong type.
        ValueError: the folder has no such file, or a file is not a MIDI file; the message names it.
    """
    path = check.path("path", path)
    steps_per_beat = check.int_between("steps_per_beat", steps_per_beat, 1, 1 << 16)
    memory = Memory(check.int_between("max_bytes", max_bytes, 1))
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in MIDI_SUFFIXES)
    if not files:
        check.fail("path", f"a folder with files ending in {' or '.join(MIDI_SUFFIXES)}", f"{path}")
    rolls = [_read(file, steps_per_beat, memory) for file in files]
    T = max(map(len, rolls))
    memory.take("path", len(rolls) * T * NUM_KEYS * torch.float32.itemsize)
    sequences = torch.zeros(len(rolls), T, NUM_KEYS)
    for padded, roll in zip(sequences, rolls, strict=True):
        padded[: len(roll)] = roll
    return SequenceSet(sequences, torch.tensor([len(roll) for roll in rolls]))


def _read(path: Path, steps_per_beat: int, memory: Memory) -> Tensor:
    """The piano roll of a file, uint8 ``[T, 88]``."""
    mido = require("mido", f"reading {path.name}")
    memory.take(path.name, path.stat().st_size * _BYTES_PER_BYTE)
    with path.open("rb") as file:
        try:
            midi = mido.MidiFile(file=file, clip=True)
            if midi.ticks_per_beat < 1:
                check.fail("time", "a file timed in beats", "one timed in SMPTE frames")
            tracks = [_notes(track) for track in midi.tracks]
        except Exception as error:  # for a broken file mido raises errors of almost any type
            got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"{path}: expected a MIDI file, got {got}") from error
    ticks = midi.ticks_per_beat

    def step(time: int) -> int:
        """The step nearest to a time; of two equally near steps the later one."""
        return (2 * time * steps_per_beat + ticks) // (2 * ticks)

    T = max((step(end) for _, end in tracks), default=0)
    notes = [note for track, _ in tracks for note in track]
    T = max([T, *(step(note.start) + 1 for note in notes)])
    if T == 0:
        check.fail(str(path), "music of at least one time step", "none")
    memory.take(path.name, T * NUM_KEYS)
    roll = torch.zeros(T, NUM_KEYS, dtype=torch.uint8)
    for key, start, end in notes:
        roll[step(start) : max(step(end), step(start) + 1), key] = 1
    return roll


def _notes(track: Any) -> tuple[list[_Note], int]:
    """The notes of a track in ticks, and its end."""
    clock, notes = 0, []
    struck: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for message in track:
        clock += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        held = struck[message.channel, message.note]
        if message.type == "note_on" and message.velocity > 0:
            held.append(clock)
        elif held:
            notes.append((message.note, held.pop(0), clock))
    # A note without a note-off sounds to the end of the track.
    notes += [(note, start, clock) for (_, note), held in struck.items() for start in held]
    keys = ((note - LOWEST_NOTE, start, end) for note, start, end in notes)
    return [_Note(*note) for note in keys if 0 <= note[0] < NUM_KEYS], clock
