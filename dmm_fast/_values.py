"""Checks that the values in a mini-batch are in the support of an emission."""

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
"""The kinds of values: a description of each, and a function that tests values elementwise."""

# Emissions by the kind of values they suit, the narrowest kind first.
_EMISSIONS = (
    (_binary, "'bernoulli' or 'nade'"),
    (_count, "'poisson' or 'negative_binomial'"),
    (np.isfinite, "'gaussian'"),
)


def check_values(x: Values, observed: Values, kind: str, name: str = "mini_batch") -> None:
    """Check the values of ``x [B, T, D]`` at the entries where ``observed``, which broadcasts to it, is True.

    Args:
        x: the values.
        observed: bool, True at observed entries.
        kind: the required kind of values, one of :data:`KINDS`.
        name: the argument that an error message names.

    Raises:
        ValueError: a value is of another kind; the message names an emission that suits the data.
    """
    wanted, fits = KINDS[kind]
    observed = np.broadcast_to(observed, x.shape)
    bad = ~fits(x)
    if bad.any() and (bad := bad & observed).any():
        b, t, d = (int(i) for i in np.argwhere(bad)[0])
        _refuse(name, wanted, f"{x[b, t, d].item()} at {(b, t, d)}", x[observed], kind)
    if kind == "one_hot":
        ones = np.where(observed, x, 0).sum(-1)
        # In a step with missing entries the 1 may be one of them.
        bad = (ones > 1) | ((ones < 1) & observed.all(-1))
        if bad.any():
            b, t = (int(i) for i in np.argwhere(bad)[0])
            _refuse(name, wanted, f"{int(ones[b, t])} of them at {(b, t)}", x[observed], kind)


def _refuse(name: str, wanted: str, got: str, values: Values, kind: str) -> None:
    suited = next((names for fits, names in _EMISSIONS if fits(values).all()), None)
    # NaN and infinities are of no kind: they have to be masked.
    hint = "" if suited is None or kind == "real" else f" (emission={suited} is for such data)"
    check.fail(name, f"{wanted} wherever it is not masked", got + hint)
