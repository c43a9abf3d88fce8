"""Piano rolls written as MIDI and read back by mido."""

from pathlib import Path
from typing import Any

import mido
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmm_fast.music import TICKS_PER_STEP, to_midi, write_midi


def read_roll(midi: mido.MidiFile, D: int = 88, lowest: int = 21) -> Tensor:
    """The roll a MIDI file plays, from its messages alone."""
    (track,) = midi.tracks
    T, rest = divmod(sum(message.time for message in track), midi.ticks_per_beat)
    assert rest == 0
    roll, clock, since = torch.zeros(T, D), 0, {}
    for message in track:
        clock += message.time
        if message.type == "note_on":
            assert message.note not in since, "struck while it sounds"
            since[message.note] = clock
        elif message.type == "note_off":
            start = since.pop(message.note) // midi.ticks_per_beat
            roll[start : clock // midi.ticks_per_beat, message.note - lowest] = 1
    assert not since, "notes that never end"
    return roll


@given(st.integers(1, 40), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_round_trip(T: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    roll = (torch.rand(T, 88, generator=generator) < density).float()
    assert torch.equal(read_roll(to_midi(roll)), roll)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    roll = (torch.rand(30, 88) < 0.1).float()
    write_midi(tmp_path / "a.mid", to_midi(roll, tempo=90, program=19, velocity=70))
    midi = mido.MidiFile(tmp_path / "a.mid")
    assert torch.equal(read_roll(midi), roll)
    assert midi.length == pytest.approx(30 * 60 / 90, rel=1e-4)
    messages = list(midi.tracks[0])
    assert next(m for m in messages if m.type == "program_change").program == 19
    assert {m.velocity for m in messages if m.type == "note_on"} == {70}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mid"]


def test_held_note_is_struck_once_and_rests_count() -> None:
    roll = torch.zeros(8, 88)
    roll[1:4, 39] = 1
    roll[5, 39] = 1
    notes = [m for m in to_midi(roll).tracks[0] if m.type in ("note_on", "note_off")]
    steps = [(m.type, m.note, m.time // TICKS_PER_STEP) for m in notes]
    assert steps == [
        ("note_on", 60, 1),
        ("note_off", 60, 3),
        ("note_on", 60, 1),
        ("note_off", 60, 1),
    ]
    assert to_midi(roll, tempo=60).length == pytest.approx(8.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_any_dtype(dtype: torch.dtype) -> None:
    roll = (torch.rand(5, 88) < 0.3).to(dtype)
    assert torch.equal(read_roll(to_midi(roll)), roll.float())


@pytest.mark.parametrize(
    ("roll", "arguments", "message"),
    [
        (torch.zeros(3), {}, r"roll: expected a tensor of shape \(T, D\)"),
        (torch.full((3, 88), 0.5), {}, "roll: expected entries 0 or 1"),
        (torch.full((3, 88), torch.nan), {}, "roll: expected entries 0 or 1"),
        (torch.zeros(3, 120), {}, "roll: expected MIDI notes 0 to 127, got notes 21 to 140"),
        (torch.zeros(3, 88), {"tempo": 3.0}, "tempo: expected at least 3.6"),
        (torch.zeros(3, 88), {"tempo": float("inf")}, "tempo"),
        (torch.zeros(3, 88), {"program": 128}, "program: expected an int from 0 to 127, got 128"),
        (torch.zeros(3, 88), {"velocity": 0}, "velocity: expected an int from 1 to 127, got 0"),
        (torch.zeros(3, 88), {"lowest_note": -1}, "lowest_note: expected an int from 0 to 127, got -1"),
    ],
)
def test_refusals(roll: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_midi(roll, **arguments)
