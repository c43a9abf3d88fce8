"""Valid ranges of the settings of an Adam step, and the check of a number against a range."""

import math
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

from dmm_fast import check

_LARGEST = sys.float_info.max


class Range(NamedTuple):
    """A range of numbers: its description in messages, and a membership test that NaN fails."""

    expected: str
    admits: Callable[[Any], bool]
    kind: Any = Real


COUNT = Range("an int from 1", lambda n: 1 <= n <= check.LARGEST_INT, Integral)
COUNT_SO_FAR = Range("an int from 0", lambda n: 0 <= n < check.LARGEST_INT, Integral)
FINITE = Range("a finite number", lambda x: -_LARGEST <= x <= _LARGEST)
FROM_ZERO = Range("a finite number from 0", lambda x: 0 <= x <= _LARGEST)
ABOVE_ZERO = Range("a finite number above 0", lambda x: 0 < x <= _LARGEST)
BOUND = Range("a number above 0", lambda x: 0 < x <= _LARGEST or x == math.inf)
DECAY = Range("a number in [0, 1)", lambda x: 0 <= x < 1)

RANGES = {
    "beta1": DECAY,
    "beta2": DECAY,
    "eps": FROM_ZERO,
    "weight_decay": FROM_ZERO,
    "clip_norm": BOUND,
}
"""The ranges of the settings of ``clipped_adam``; the optimizer's are the same."""


def number(name: str, value: Any, within: Range) -> Any:
    """Check a Python number, which must not be a bool, and return it as an int or a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, within.kind):
        check.fail(name, within.expected, check.describe(value), TypeError)
    if not within.admits(value):
        check.fail(name, within.expected, repr(value)[:80])
    return int(value) if within.kind is Integral else float(value)
