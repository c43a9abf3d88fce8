"""Piano rolls of folders of MIDI files."""

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

_DRUMS = 9  # the channel of percussion, whose notes are no pitches
# Bytes that mido takes for the object it makes of a message, of which a byte of a file is enough.
_BYTES_PER_BYTE = 256


class _Note(NamedTuple):
    """A key held from one time to another, in ticks."""

    key: int
    start: int
    end: int


def read_midi_folder(
    path: str | Path, *, steps_per_beat: int = 4, max_bytes: int = DEFAULT_BYTES
) -> SequenceSet:
    """Read the MIDI files in a folder as piano rolls of 0 and 1, ``[T, 88]``, a sequence each.

    Files are those ending in ``.mid`` or ``.midi``, in the order of their names. Column 0 is MIDI note 21; a
    key is on in the time steps that it is held in, to the nearest step and for one at least. A key that is
    struck again while it sounds, or right after, is one that is held. Percussion (channel 10) and notes
    beyond the 88 keys are left out, and a file lasts to the end of its longest track.

    Args:
        path: the folder.
        steps_per_beat: time steps of a quarter note.
        max_bytes: refuse files that take more memory than this, before that memory is allocated.

    Raises:
        ImportError: mido is not installed.
        OSError: the folder or a file cannot be opened.
        TypeError: an argument is of another type.
        ValueError: there is no such file in it, or one is no MIDI file; the message names it.
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
                check.fail("time", "a file that counts beats", "one that counts frames of a film")
            tracks = [_notes(track) for track in midi.tracks]
        except Exception as error:  # of a broken file mido raises nearly every type there is
            got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"{path}: expected a MIDI file, got {got}") from error
    ticks = midi.ticks_per_beat

    def step(time: int) -> int:
        """The step nearest to a time, the later of two."""
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
    """The notes of a track in ticks, and when it ends."""
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
    # A note that nothing ends sounds to the end.
    notes += [(note, start, clock) for (_, note), held in struck.items() for start in held]
    keys = ((note - LOWEST_NOTE, start, end) for note, start, end in notes)
    return [_Note(*note) for note in keys if 0 <= note[0] < NUM_KEYS], clock
