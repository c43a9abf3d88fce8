"""Four-part harmony: triads in a key, their voicings, and the allowed moves between voicings."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Voicings = NDArray[np.int64]
"""``[n, 4]`` MIDI notes: soprano, alto, tenor, bass."""

RANGES = ((60, 79), (55, 74), (48, 67), (40, 60))
"""The lowest and highest MIDI note of soprano, alto, tenor and bass."""
WIDEST = (12, 12, 19)
"""The largest distance, in semitones, between neighbouring voices from the top."""
LARGEST_LEAP = (9, 9, 9, 12)

# Root, third and fifth above the tonic, in semitones. The minor mode has a raised leading tone in V and vii,
# and an eighth chord, the major tonic that may end a piece (the Picardy third).
MAJOR = ((0, 4, 7), (2, 5, 9), (4, 7, 11), (5, 9, 0), (7, 11, 2), (9, 0, 4), (11, 2, 5))
MINOR = ((0, 3, 7), (2, 5, 8), (3, 7, 10), (5, 8, 0), (7, 11, 2), (8, 0, 3), (11, 2, 5), (0, 4, 7))
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))
TONIC, SUBDOMINANT, DOMINANT, PICARDY = 0, 3, 4, 7


class Chord(NamedTuple):
    """A triad as absolute pitch classes (0 = C), with the tonic of its key."""

    root: int
    third: int
    fifth: int
    tonic: int

    @classmethod
    def on(cls, tonic: int, triad: tuple[int, int, int]) -> Chord:
        """The chord whose tones lie ``triad`` semitones above ``tonic``."""
        root, third, fifth = ((tone + tonic) % 12 for tone in triad)
        return cls(root, third, fifth, tonic)

    @property
    def leading_tone(self) -> int:
        """The pitch class a semitone below the tonic."""
        return (self.tonic + 11) % 12

    @property
    def diminished(self) -> bool:
        """True if the fifth is diminished."""
        return (self.fifth - self.root) % 12 == 6


def parallels(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """True if two moving voices go from a perfect fifth to a perfect fifth, or from an octave to an octave.

    ``before`` and ``after`` are ``[..., 4]`` and broadcast; contrary motion counts too.
    """
    found = np.zeros(np.broadcast_shapes(before.shape, after.shape)[:-1], dtype=bool)
    moves = before != after
    for i, j in combinations(range(4), 2):
        was = (before[..., i] - before[..., j]) % 12
        now = (after[..., i] - after[..., j]) % 12
        perfect = (was == now) & ((now == 0) | (now == 7))
        found |= perfect & moves[..., i] & moves[..., j]
    return found


class Harmony:
    """Voicings of chords and the costs of moves between them, each computed once."""

    def __init__(self) -> None:
        self._voicings: dict[Chord, tuple[Voicings, NDArray[np.float64]]] = {}
        self._moves: dict[tuple[Chord, Chord], NDArray[np.float64]] = {}

    def voicings(self, chord: Chord) -> tuple[Voicings, NDArray[np.float64]]:
        """All allowed voicings ``[n, 4]`` of ``chord`` and their costs ``[n]``.

        The voices keep their ranges, order and spacing; no tone is omitted; the leading tone is not doubled;
        the bass has the root or the third, and in a diminished triad the third.
        """
        if chord not in self._voicings:
            self._voicings[chord] = _voicings(chord)
        return self._voicings[chord]

    def moves(self, chord: Chord, following: Chord) -> NDArray[np.float64]:
        """The cost ``[n, m]`` of each move between voicings of two chords; inf: a forbidden move."""
        if (chord, following) not in self._moves:
            self._moves[chord, following] = self._cost(chord, following)
        return self._moves[chord, following]

    def _cost(self, chord: Chord, following: Chord) -> NDArray[np.float64]:
        before = self.voicings(chord)[0][:, None]
        after = self.voicings(following)[0][None]
        move = after - before
        cost: NDArray[np.float64] = np.abs(move).sum(-1).astype(np.float64)
        # The melody should repeat notes less often than the inner voices.
        cost += 3.0 * (move[..., 0] == 0)
        # A voice that moves past its neighbour's previous note (overlap) is hard to follow.
        cost += 6.0 * (after[..., 1:] > before[..., :-1]).sum(-1)
        cost += 6.0 * (after[..., :-1] < before[..., 1:]).sum(-1)
        if following.tonic in following[:3]:
            # The leading tone in an outer voice should rise; this is a penalty and not a rule, since not
            # every context allows it.
            leading = before[..., (0, 3)] % 12 == chord.leading_tone
            cost += 20.0 * (leading & (move[..., (0, 3)] != 1)).sum(-1)
        too_far = (np.abs(move) > np.array(LARGEST_LEAP)).any(-1)
        cost[too_far | parallels(before, after)] = np.inf
        return cost


def _voicings(chord: Chord) -> tuple[Voicings, NDArray[np.float64]]:
    tones = chord[:3]
    notes = [[n for n in range(low, high + 1) if n % 12 in tones] for low, high in RANGES]
    every = np.array(list(product(*notes)))
    gaps = every[:, :-1] - every[:, 1:]
    count = np.stack([(every % 12 == tone).sum(-1) for tone in tones], axis=-1)
    bass = every[:, 3] % 12
    keep = ((gaps >= 0) & (gaps <= np.array(WIDEST))).all(-1) & (count > 0).all(-1)
    keep &= (bass == chord.third) | ((bass == chord.root) & (not chord.diminished))
    keep &= (every % 12 == chord.leading_tone).sum(-1) <= 1
    # The root is best doubled, and in a diminished triad the third.
    doubling = np.array([3.0, 0.0, 3.0] if chord.diminished else [0.0, 3.0, 1.0])
    cost = (count - 1) @ doubling + 2.0 * (bass == chord.third)
    # A small cost for the distance to the middle of the ranges keeps voices from drifting over a long piece.
    middle = np.array([(low + high) / 2 for low, high in RANGES])
    cost += 0.1 * np.abs(every - middle).sum(-1)
    return every[keep], cost[keep]
