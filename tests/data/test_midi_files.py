"""Folders of MIDI files as piano rolls."""

from pathlib import Path
from typing import Any

import mido
import pytest
import torch

from dmm_fast.data import load, read_midi_folder
from dmm_fast.music import to_midi, write_midi


def write(path: Path, *tracks: list[Any], ticks: int = 480, type: int = 1) -> None:
    made = [mido.MidiTrack(track) for track in tracks]
    mido.MidiFile(type=type, ticks_per_beat=ticks, tracks=made).save(path)


def on(note: int, time: int, velocity: int = 64, channel: int = 0) -> mido.Message:
    return mido.Message("note_on", note=note, time=time, velocity=velocity, channel=channel)


def off(note: int, time: int, channel: int = 0) -> mido.Message:
    return mido.Message("note_off", note=note, time=time, channel=channel)


def steps(roll: torch.Tensor, note: int) -> list[int]:
    return roll[:, note - 21].nonzero().flatten().tolist()


def test_written_files_are_read_back(tmp_path: Path) -> None:
    rolls = [(torch.rand(T, 88) < 0.2).float() for T in (9, 5)]
    for name, roll in zip(("a.mid", "b.midi"), rolls, strict=True):
        write_midi(tmp_path / name, to_midi(roll))
    (tmp_path / "readme.txt").write_text("no music")
    read = read_midi_folder(tmp_path, steps_per_beat=1)
    assert read.lengths.tolist() == [9, 5]
    for row, roll in zip(read.sequences, rolls, strict=True):
        assert torch.equal(row[: len(roll)], roll)


def test_quarters_of_a_beat_over_tracks_and_channels(tmp_path: Path) -> None:
    write(
        tmp_path / "a.mid",
        # Held from step 0 to 4; struck again while it sounds; a grace note of a few ticks; never ended.
        [on(60, 0), on(60, 240), off(60, 240), off(60, 0), on(62, 5), off(62, 3), on(64, 472)],
        # Nearest steps: 125 ticks are 1.04 steps, 310 are 2.6. Drums and notes beyond the keys are left out.
        [on(67, 125), on(20, 0), on(109, 0), on(35, 0, channel=9), on(67, 185, velocity=0), off(20, 900)],
    )
    (roll,) = read_midi_folder(tmp_path).sequences
    assert roll.shape == (10, 88)
    assert steps(roll, 60) == [0, 1, 2, 3]
    assert steps(roll, 62) == [4]
    assert steps(roll, 64) == [8]
    assert steps(roll, 67) == [1, 2]
    assert int(roll.sum()) == 8


def test_folders_of_splits(tmp_path: Path) -> None:
    for name, T in (("train", 4), ("valid", 3), ("test", 2)):
        (tmp_path / name).mkdir()
        write_midi(tmp_path / name / "a.mid", to_midi(torch.ones(T, 88)))
    made = load(tmp_path)
    assert [int(part.lengths) for part in (made.train, made.valid, made.test)] == [16, 12, 8]


def test_a_folder_without_splits_is_divided(tmp_path: Path) -> None:
    for i in range(4):
        write_midi(tmp_path / f"{i}.mid", to_midi(torch.ones(i + 1, 88)))
    made = load(tmp_path)
    assert made.name == tmp_path.stem
    assert sorted(torch.cat([p.lengths for p in (made.train, made.valid, made.test)]).tolist()) == [
        4,
        8,
        12,
        16,
    ]


HEADER = b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a MIDI file, got EOFError"),
        (b"no music at all", "expected a MIDI file, got OSError"),
        (HEADER + b"\0\0\0", "expected a MIDI file"),
        (HEADER + b"\xff\xff\xff\xff\0\x90", "expected a MIDI file"),
        (HEADER[:12] + b"\xe7\x28MTrk\0\0\0\4\0\xff\x2f\0", "a file timed in beats"),
        (HEADER + b"\0\0\0\4\0\xff\x2f\0", "expected music of at least one time step, got none"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.mid").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_midi_folder(tmp_path)
    assert "bad.mid" in str(caught.value)


def test_long_rests_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    rests = [on(60, 2**27), off(60, 2**27)] * 8
    write(tmp_path / "a.mid", rests, ticks=1)
    assert (tmp_path / "a.mid").stat().st_size < 200
    with pytest.raises(ValueError, match=r"a\.mid: expected a file that takes at most max_bytes"):
        read_midi_folder(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a folder with files ending in \.mid or \.midi"):
        read_midi_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_midi_folder(tmp_path / "none")
    with pytest.raises(TypeError, match="steps_per_beat: expected an int from 1"):
        read_midi_folder(tmp_path, steps_per_beat=0.5)  # type: ignore[arg-type]
