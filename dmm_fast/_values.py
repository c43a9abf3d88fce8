"""Checks of the values in a mini-batch: whether they are what an emission can emit."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm_fast import check

Values = NDArray[Any]


def _binary(x: Values) -> Values:
    return (x == 0) | (x == 1)


def _count(x: Values) -> Values:
    with np.errstate(invalid="ignore"):
        return (x >= 0) & (x == np.floor(x)) & np.isfinite(x)


KINDS: dict[str, tuple[str, Callable[[Values], Values]]] = {
    "binary": ("0 or 1", _binary),
    "count": ("a whole number from 0", _count),
    "one_hot": ("0 or 1, and one 1 a step,", _binary),
    "real": ("a finite number", np.isfinite),
}
"""The kinds of values: what each is called, and which numbers it has."""

# Emissions by what the values are, the narrowest first.
_EMISSIONS = (
    (_binary, "'bernoulli' or 'nade'"),
    (_count, "'poisson' or 'negative_binomial'"),
    (np.isfinite, "'gaussian'"),
)


def check_values(x: Values, observed: Values, kind: str, name: str = "mini_batch") -> None:
    """Check the values of ``x [B, T, D]`` where ``observed``, which broadcasts to it, is True.

    ``name`` is what the message calls them.

    Raises:
        ValueError: one is of another kind; the message names an emission for data of that kind.
    """
    wanted, fits = KINDS[kind]
    observed = np.broadcast_to(observed, x.shape)
    bad = ~fits(x)
    if bad.any() and (bad := bad & observed).any():
        b, t, d = (int(i) for i in np.argwhere(bad)[0])
        _refuse(name, wanted, f"{x[b, t, d].item()} at {(b, t, d)}", x[observed], kind)
    if kind == "one_hot":
        ones = np.where(observed, x, 0).sum(-1)
        # Of a step that is not wholly observed the 1 may be among what is missing.
        bad = (ones > 1) | ((ones < 1) & observed.all(-1))
        if bad.any():
            b, t = (int(i) for i in np.argwhere(bad)[0])
            _refuse(name, wanted, f"{int(ones[b, t])} of them at {(b, t)}", x[observed], kind)


def _refuse(name: str, wanted: str, got: str, values: Values, kind: str) -> None:
    suited = next((names for fits, names in _EMISSIONS if fits(values).all()), None)
    # A NaN or an infinity is of no kind: it has to be masked.
    hint = "" if suited is None or kind == "real" else f" (emission={suited} is for such data)"
    check.fail(name, f"{wanted} wherever it is not masked", got + hint)
