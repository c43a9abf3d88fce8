"""The composed chorales follow the rules of four-part writing."""

import importlib
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm_fast.data._chorales import PHRASE_STARTS, SUCCESSION, chorale_voices, chorales
from dmm_fast.data._harmony import (
    MAJOR,
    MINOR,
    PICARDY,
    RANGES,
    SCALES,
    WIDEST,
    Chord,
    Harmony,
    parallels,
)


@cache
def pieces() -> list[Tensor]:
    return chorale_voices(60, seed=3)


def count_parallels(voices: Tensor) -> int:
    """Parallel fifths and octaves, counted pair by pair from the definition."""
    rows = voices.tolist()
    count = 0
    for before, after in pairwise(rows):
        for i in range(4):
            for j in range(i + 1, 4):
                was, now = abs(before[i] - before[j]) % 12, abs(after[i] - after[j]) % 12
                both_move = before[i] != after[i] and before[j] != after[j]
                count += both_move and was == now and was in (0, 7)
    return count


def test_counting_parallels() -> None:
    fifths = torch.tensor([[72, 64, 55, 48], [74, 65, 57, 50]])
    # Soprano and bass an octave apart, tenor and bass a fifth: both move on in parallel.
    assert count_parallels(fifths) == 2
    assert parallels(fifths[0].numpy(), fifths[1].numpy())
    held = torch.tensor([[72, 64, 55, 48], [72, 65, 57, 48]])
    assert count_parallels(held) == 0
    assert not parallels(held[0].numpy(), held[1].numpy())


def test_no_parallel_fifths_or_octaves() -> None:
    assert sum(count_parallels(v) for v in pieces()) == 0


def test_ranges_order_and_spacing() -> None:
    notes = torch.cat(pieces())
    for voice, (low, high) in enumerate(RANGES):
        assert low <= notes[:, voice].min()
        assert notes[:, voice].max() <= high
    gaps = notes[:, :-1] - notes[:, 1:]
    assert gaps.min() >= 0
    assert (gaps <= torch.tensor(WIDEST)).all()


def test_voices_lead() -> None:
    moves = torch.cat([v.diff(dim=0).abs() for v in pieces()])
    assert (moves[:, :3].float().mean(0) < 2).all()
    # The melody moves on most beats.
    assert 0.5 < (moves[:, 0] > 0).float().mean() < 0.9


def test_leading_tone_rises_at_the_close() -> None:
    rises, falls = 0, 0
    for voices in pieces():
        tonic = int(voices[-1, 3]) % 12
        # The last chord lasts two steps, and a suspension may delay the soprano to the second.
        before, after = int(voices[-3, 0]), int(voices[-1, 0])
        if before % 12 == (tonic + 11) % 12:
            rises += after - before == 1
            falls += after - before != 1
    assert rises > 5
    assert falls == 0


def test_ends_on_the_tonic_triad_in_root_position() -> None:
    modes = set()
    for voices in pieces():
        tones = {(int(n) - int(voices[-1, 3])) % 12 for n in voices[-1]}
        assert tones in ({0, 4, 7}, {0, 3, 7})
        modes.add(tuple(sorted(tones)))
    assert len(modes) == 2


def test_keys_differ_and_notes_are_of_the_key() -> None:
    tonics = {int(v[-1, 3]) % 12 for v in pieces()}
    assert len(tonics) > 8
    for voices in pieces():
        tonic = int(voices[-1, 3]) % 12
        heard = {(int(n) - tonic) % 12 for n in voices.flatten()}
        # The raised seventh of minor, and the Picardy third.
        assert any(heard <= {*scale, 11, 4} for scale in SCALES)


def test_chorales_have_ornaments() -> None:
    """Some steps have a chord other than a triad."""
    triads = {tuple(sorted((x + k) % 12 for x in t)) for t in (*MAJOR, *MINOR) for k in range(12)}
    chords = [tuple(sorted({int(n) % 12 for n in row})) for v in pieces() for row in v]
    assert 0.03 < np.mean([c not in triads for c in chords]) < 0.3


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("triads", [MAJOR, MINOR])
def test_a_path_always_exists(tonic: int, triads: tuple[tuple[int, int, int], ...]) -> None:
    """Remove voicings without a successor until none is left to remove: every chord keeps some."""
    harmony = Harmony()
    chords = [Chord.on(tonic, t) for t in triads]
    follows = [(i, j) for i, j in zip(*np.nonzero(SUCCESSION), strict=True)]
    # A cadence ends on the tonic, from which the next phrase starts; the last may be a Picardy
    # third.
    follows += [(0, j) for j in np.nonzero(PHRASE_STARTS)[0]]
    if len(triads) > PICARDY:
        follows += [(3, PICARDY), (4, PICARDY)]
    keep = [np.ones(len(harmony.voicings(c)[0]), dtype=bool) for c in chords]
    before = -1
    while before != (before := sum(int(k.sum()) for k in keep)):
        for i, j in follows:
            allowed = np.isfinite(harmony.moves(chords[i], chords[j]))
            keep[i] &= (allowed & keep[j]).any(1)
    assert all(k.any() for k in keep)


@pytest.mark.parametrize("triad", [*MAJOR, *MINOR])
def test_voicings(triad: tuple[int, int, int]) -> None:
    chord = Chord.on(2, triad)
    voicings, cost = Harmony().voicings(chord)
    assert len(voicings) == len(cost) > 10
    gaps = voicings[:, :-1] - voicings[:, 1:]
    assert gaps.min() >= 0
    assert (gaps <= WIDEST).all()
    for voice, (low, high) in enumerate(RANGES):
        assert low <= voicings[:, voice].min()
        assert voicings[:, voice].max() <= high
    for row in voicings % 12:
        assert set(row) == {chord.root, chord.third, chord.fifth}
        assert list(row).count(1) <= 1  # C sharp, the leading tone
        assert row[3] == chord.third or (row[3] == chord.root and not chord.diminished)


def test_leading_tone_resolves_to_the_tonic() -> None:
    harmony, dominant, tonic = Harmony(), Chord.on(0, MAJOR[4]), Chord.on(0, MAJOR[0])
    before, after = harmony.voicings(dominant)[0][:, None], harmony.voicings(tonic)[0]
    moves = after - before
    strays = (before[..., 0] % 12 == 11) & (moves[..., 0] != 1)
    assert strays.any()
    extra = harmony.moves(dominant, tonic) - np.abs(moves).sum(-1)
    assert (extra[strays] >= 20).all()


@pytest.mark.parametrize(("soprano", "suspended"), [(69, True), (66, False)])
def test_an_ornament_crosses_no_voice(soprano: int, suspended: bool) -> None:
    """Only the alto falls by a step; it may be suspended unless the soprano would be below it."""
    module = importlib.import_module("dmm_fast.data._chorales")
    held = [soprano, 65, 60, 48]
    voices = np.array([[72, 67, 60, 48], held, held])
    module._ornament(voices, 2, {0, 2, 4, 5, 7, 9, 11}, module._Dice(0))
    assert voices[1].tolist() == ([soprano, 67, 60, 48] if suspended else held)


def test_a_chorale_composed_twice_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = iter([1, 1, 2, 1, 2, 3])
    module = importlib.import_module("dmm_fast.data._chorales")
    monkeypatch.setattr(module, "_compose", lambda *_: np.full((8, 4), next(drafts)))
    assert [int(v[0, 0]) for v in chorale_voices(3)] == [1, 2, 3]


def test_seed_determines_the_data_and_the_global_generator_is_unchanged() -> None:
    state = torch.get_rng_state()
    first = chorale_voices(5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = chorale_voices(8, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again[:5], strict=True))
    other = chorale_voices(5, seed=2)
    assert not any(a.shape == b.shape and torch.equal(a, b) for a in first for b in other)


def test_dataset_is_the_voices() -> None:
    data = chorales(5, 3, 2, seed=7, num_steps=(8, 30))
    splits = (data.train, data.valid, data.test)
    assert [len(s) for s in splits] == [5, 3, 2]
    voices = iter(chorale_voices(10, seed=7, num_steps=(8, 30)))
    for split in splits:
        assert split.sequences.dtype == torch.float32
        assert split.sequences.shape[2] == 88
        for roll, length in zip(split.sequences, split.lengths.tolist(), strict=True):
            piece = next(voices)
            assert len(piece) == length
            sounding = [set((step.nonzero()[:, 0] + 21).tolist()) for step in roll[:length]]
            assert sounding == [set(row) for row in piece.tolist()]
            assert 2 <= min(map(len, sounding)) <= max(map(len, sounding)) <= 4


def test_size_and_density_of_jsb() -> None:
    data = chorales(60, 1, 1)
    lengths = data.train.lengths
    assert 40 <= lengths.min() <= lengths.max() <= 130
    assert 50 < lengths.float().mean() < 80
    assert 3.7 < data.train.sequences.sum() / data.train.num_time_steps <= 4


def test_all_differ_even_when_short() -> None:
    voices = chorale_voices(300, seed=0, num_steps=(8, 8))
    assert {len(v) for v in voices} == {8}
    assert len({v.numpy().tobytes() for v in voices}) == 300


@pytest.mark.parametrize("bounds", [(7, 20), (30, 20)])
def test_refuses_lengths(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"num_steps: expected \(low, high\) with 8 <= low <= high"):
        chorales(num_steps=bounds)


def test_refuses_empty_splits() -> None:
    with pytest.raises(ValueError, match="num_valid: expected an int from 1 to 1000000, got 0"):
        chorales(num_valid=0)
