"""A built-in synthetic data set: four-part chorales with voice leading, composed from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dmm_fast import check
from dmm_fast.data._harmony import (
    DOMINANT,
    MAJOR,
    MINOR,
    PICARDY,
    SCALES,
    SUBDOMINANT,
    TONIC,
    WIDEST,
    Chord,
    Harmony,
    parallels,
)
from dmm_fast.data._piano_rolls import LOWEST_NOTE, NUM_KEYS
from dmm_fast.data._sequences import Dataset, SequenceSet

SHORTEST = 8
"""The smallest number of time steps of a chorale, one phrase."""
MOST_CHORALES, LONGEST = 1_000_000, 1_000_000
"""The largest number of chorales in a split, and of time steps in one; composing so many takes hours."""

# The probability of going from one degree (row) to the next (column): I ii iii IV V vi vii.
SUCCESSION = np.array(
    [
        [0.00, 0.15, 0.05, 0.27, 0.30, 0.18, 0.05],
        [0.05, 0.00, 0.02, 0.05, 0.65, 0.05, 0.18],
        [0.03, 0.10, 0.00, 0.30, 0.07, 0.50, 0.00],
        [0.25, 0.18, 0.02, 0.00, 0.40, 0.05, 0.10],
        [0.65, 0.02, 0.03, 0.05, 0.00, 0.25, 0.00],
        [0.05, 0.33, 0.07, 0.30, 0.20, 0.00, 0.05],
        [0.85, 0.00, 0.05, 0.00, 0.00, 0.10, 0.00],
    ]
)
PHRASE_STARTS = (0.6, 0.0, 0.0, 0.1, 0.15, 0.15, 0.0)
AUTHENTIC, HELD, ORNAMENTED = 0.85, 0.15, 0.7
"""The probabilities that a phrase ends V-I (else IV-I), that a chord lasts two steps, and that such a
chord is ornamented."""


def chorales(
    num_train: int = 229,
    num_valid: int = 76,
    num_test: int = 77,
    seed: int = 0,
    num_steps: tuple[int, int] = (40, 130),
) -> Dataset:
    """Compose a data set of the size and density of the JSB chorales, without any file or download.

    A chorale is in a random major or minor key. Each phrase is a Markov chain over the triads of the key
    that ends in a cadence, V-I or IV-I. The four voices take the path through all voicings with the least
    movement (plus a little noise), within their ranges, without crossing and without parallel fifths or
    octaves. Some chords last two steps; some of these are ornamented by passing notes and suspensions.
    A step is a beat, as in the JSB set.

    Args:
        num_train: number of chorales in the training split, up to a million; all chorales are different.
        num_valid: number of chorales in the validation split.
        num_test: number of chorales in the test split.
        seed: seed of a separate generator; torch's global one is not used.
        num_steps: the smallest and the largest length, from 8 to a million; short chorales are more
            frequent.

    Returns:
        A :class:`Dataset` of float32 piano rolls ``[N, T, 88]`` of 0 and 1, column 0 = MIDI note
        21.

    Raises:
        TypeError: an argument is not an int, or ``num_steps`` is not a pair of ints.
        ValueError: an argument is out of range.
    """
    sizes = {"num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    for name, size in sizes.items():
        check.int_between(name, size, 1, MOST_CHORALES)
    voices = chorale_voices(num_train + num_valid + num_test, seed, num_steps)
    end = num_train + num_valid
    parts = (voices[:num_train], voices[num_train:end], voices[end:])
    return Dataset("chorales", *(_sequence_set(part) for part in parts))


def chorale_voices(num_chorales: int, seed: int = 0, num_steps: tuple[int, int] = (40, 130)) -> list[Tensor]:
    """The chorales of :func:`chorales`, all different, as voices: each ``[T, 4]`` int64.

    A row has the MIDI notes of soprano, alto, tenor and bass. A smaller number of chorales gives the first of
    a larger number.
    """
    check.int_between("num_chorales", num_chorales, 0, 3 * MOST_CHORALES)
    seed = check.int_between("seed", seed, -check.LARGEST_INT, check.LARGEST_INT)
    if not isinstance(num_steps, tuple | list) or len(num_steps) != 2:
        check.fail("num_steps", "(low, high)", check.describe(num_steps), TypeError)
    low, high = (check.int_between("num_steps", steps, 0, LONGEST) for steps in num_steps)
    if not SHORTEST <= low <= high:
        check.fail("num_steps", f"(low, high) with {SHORTEST} <= low <= high", str(num_steps))
    dice, harmony = _Dice(seed), Harmony()
    out: dict[bytes, Tensor] = {}
    while len(out) < num_chorales:
        # Short chorales are more frequent: with the defaults the mean length is 66.
        T = low + int((high - low + 1) * dice.uniform() ** 2.5)
        voices = _compose(T, dice, harmony)
        out.setdefault(voices.tobytes(), torch.from_numpy(voices))
    return list(out.values())


class _Dice:
    """Random numbers from a separate torch generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: list[float] = []

    def uniform(self) -> float:
        if not self._drawn:
            # Draw many at once, since a call of torch costs the same for one number as for a thousand.
            self._drawn = self.uniforms(1024).tolist()
        return self._drawn.pop()

    def uniforms(self, n: int) -> NDArray[np.float64]:
        draw = torch.rand(n, dtype=torch.float64, generator=self._generator)
        return np.asarray(draw.numpy())

    def pick(self, weights: Sequence[float] | NDArray[np.float64]) -> int:
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, self.uniform() * cumulative[-1], side="right"))


def _sequence_set(voices: Sequence[Tensor]) -> SequenceSet:
    rolls = [torch.zeros(len(v), NUM_KEYS).scatter_(1, v - LOWEST_NOTE, 1.0) for v in voices]
    return SequenceSet(pad_sequence(rolls, batch_first=True), torch.tensor([len(v) for v in voices]))


def _compose(T: int, dice: _Dice, harmony: Harmony) -> NDArray[np.int64]:
    """Compose ``T`` steps in a random key: ``[T, 4]``."""
    tonic, minor = int(12 * dice.uniform()), dice.uniform() < 0.5
    degrees: list[int] = []
    durations: list[int] = []
    cadence: list[bool] = []
    left = T
    while left:
        length = 8 if dice.uniform() < 0.8 else 12
        if left - length < SHORTEST:
            length = left
        phrase_degrees, phrase_durations = _phrase(length, dice)
        degrees += phrase_degrees
        durations += phrase_durations
        cadence += [False] * (len(phrase_degrees) - 2) + [True, True]
        left -= length
    if minor and dice.uniform() < 0.5:
        degrees[-1] = PICARDY
    triads = MINOR if minor else MAJOR
    chords = [Chord.on(tonic, triads[d]) for d in degrees]
    voices = np.repeat(_voice(chords, cadence, dice, harmony), durations, axis=0)
    scale = {(tone + tonic) % 12 for tone in SCALES[minor]}
    for end, duration in zip(np.cumsum(durations), durations, strict=True):
        if duration == 2 and dice.uniform() < ORNAMENTED:
            _ornament(voices, int(end) - 1, scale, dice)
    return voices


def _phrase(length: int, dice: _Dice) -> tuple[list[int], list[int]]:
    """The degrees and durations of a phrase of ``length`` steps, at least 8; the last chord lasts two."""
    durations = []
    left = length - 2
    while left:
        duration = 2 if left >= 2 and dice.uniform() < HELD else 1
        durations.append(duration)
        left -= duration
    target = DOMINANT if dice.uniform() < AUTHENTIC else SUBDOMINANT
    # reach[m][d]: the probability of being at the target m chords after d, with which the chain is drawn
    # conditionally on its end.
    reach = [np.eye(len(SUCCESSION))[target]]
    for _ in durations:
        reach.append(SUCCESSION @ reach[-1])
    degrees = [dice.pick(PHRASE_STARTS)]
    for to_go in range(len(durations) - 2, 0, -1):
        degrees.append(dice.pick(SUCCESSION[degrees[-1]] * reach[to_go]))
    return [*degrees, target, TONIC], [*durations, 2]


def _voice(
    chords: Sequence[Chord], cadence: Sequence[bool], dice: _Dice, harmony: Harmony
) -> NDArray[np.int64]:
    """Choose the cheapest path through the voicings of ``chords`` (Viterbi): ``[len(chords), 4]``.

    A path always exists: in every key, some voicing of each chord has an allowed continuation of any length.
    """
    options, came_from = [], []
    total = np.zeros(0)
    for i, chord in enumerate(chords):
        voicings, cost = harmony.voicings(chord)
        cost = cost + 4.0 * dice.uniforms(len(cost))
        if cadence[i]:
            cost += 30.0 * (voicings[:, 3] % 12 != chord.root)
        if i > 0:
            arrive = total[:, None] + harmony.moves(chords[i - 1], chord)
            came_from.append(arrive.argmin(0))
            cost += arrive.min(0)
        options.append(voicings)
        total = cost
    path = [int(total.argmin())]
    for source in reversed(came_from):
        path.append(int(source[path[-1]]))
    return np.stack([v[k] for v, k in zip(options, reversed(path), strict=True)])


def _ornament(voices: NDArray[np.int64], end: int, scale: set[int], dice: _Dice) -> None:
    """Ornament, in place and at random, the chord held at steps ``end - 1`` and ``end``.

    A suspension keeps a falling voice on its old note for the first of the two steps; a passing
    note fills a third between the second and the next chord.
    """
    choices = []
    first = end - 1
    if first > 0:
        fall = voices[first - 1] - voices[first]
        choices += [(first, v, voices[first - 1, v]) for v in range(3) if fall[v] in (1, 2)]
    if end + 1 < len(voices):
        for v, (a, b) in enumerate(zip(voices[end], voices[end + 1], strict=True)):
            between = [n for n in range(min(a, b) + 1, max(a, b)) if n % 12 in scale]
            if abs(a - b) in (3, 4) and len(between) == 1:
                choices.append((end, v, between[0]))
    if not choices:
        return
    step, voice, note = choices[int(len(choices) * dice.uniform())]
    row = voices[step].copy()
    row[voice] = note
    gaps = row[:-1] - row[1:]
    if (gaps < 0).any() or (gaps > np.array(WIDEST)).any():
        return
    if not any(parallels(a, b) for a, b in ((voices[step - 1], row), (row, voices[step + 1]))):
        voices[step] = row
