"""Signatures of steps, the keys of graphs, and a warning if they change too often."""

import warnings
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor

from dmm_fast import check

_MANY = 16
"""Number of displaced or restarted signatures after which a warning is given."""
_FEW_STEPS = 1024
"""Number of steps within which they count; over more steps, the replays repay the captures."""

_PAD = "pad sequences to few numbers of time steps, as SequenceSet.padded_steps does, or raise max_graphs"
_NUMBER = (
    "pass a number that changes as a float or a tensor, and restrict numbers of time steps to a few values, "
    "as SequenceSet.padded_steps does"
)
_SAME_NUMBER = "take the same number of steps in each call, or raise max_graphs"
_FEWER = "pass fewer kinds of arguments, or raise max_graphs"
_KEEP = "keep model, guide and optimizer between steps, and set a learning rate by filling its tensor"


_OF_TENSOR = attrgetter("shape", "dtype", "device")

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a step: positional and keyword arguments."""


Kinds = tuple[tuple[object, ...], tuple[str, ...], tuple[object, ...]]
"""The kinds of a step's arguments, which a graph fixes: positional ones, keywords, and keyword arguments."""

Signature = tuple[tuple[Kinds, ...], tuple[bool, ...]]
"""The key of a graph: the kinds of the arguments of each of its steps, and the modes of the modules."""


class Change(NamedTuple):
    """A difference between two signatures, and the remedy if it occurs often."""

    what: str
    remedy: str


def signature(calls: list[Call], modes: tuple[bool, ...]) -> Signature:
    """The signature of some steps; raises a TypeError if a graph cannot have an argument of such a type."""
    kinds = []
    for args, kwargs in calls:
        names = tuple(sorted(kwargs)) if kwargs else ()
        kinds.append((_kinds(args), names, _kinds([kwargs[name] for name in names]) if names else ()))
    return tuple(kinds), modes


def changes(one: Signature, other: Signature) -> Iterator[Change]:
    """Differences between two signatures."""
    (calls, modes), (other_calls, other_modes) = one, other
    if len(calls) != len(other_calls):
        yield Change("the number of steps", _SAME_NUMBER)
        return
    for a, b in zip(calls, other_calls, strict=True):
        yield from _argument_changes(a, b)
    if modes != other_modes:
        yield Change("the training modes of the modules", _FEWER)


def _argument_changes(one: Kinds, other: Kinds) -> Iterator[Change]:
    """Differences between the arguments of two steps."""
    (args, names, kwargs), (other_args, other_names, other_kwargs) = one, other
    if len(args) != len(other_args) or names != other_names:
        yield Change("the number or the names of the arguments", _FEWER)
        return
    labels = (*map(str, range(len(args))), *map(repr, names))
    for label, a, b in zip(labels, (*args, *kwargs), (*other_args, *other_kwargs), strict=True):
        if a != b:
            yield _change(f"argument {label}", a, b)


def started_over(what: str) -> Change:
    """The change of a signature that starts over because ``what`` has changed on the host."""
    return Change(what, _KEEP)


class Turnover:
    """Counts signatures that displace others or start over, and warns once if there are many."""

    def __init__(self) -> None:
        self.steps = 0
        self._events, self._since = 0, 0
        self._changes: dict[Change, None] = {}
        self._told = False

    def count(self, why: Iterable[Change], max_graphs: int) -> None:
        """Count one event with its changes; a warning is attributed to the caller of the public method."""
        if self._told:
            return
        if self.steps - self._since > _FEW_STEPS:
            self._events, self._since = 0, self.steps
            self._changes.clear()
        self._events += 1
        self._changes.update(dict.fromkeys(why))
        if self._events < _MANY:
            return
        self._told = True
        what = ", ".join(dict.fromkeys(change.what for change in self._changes))
        remedies = "; ".join(dict.fromkeys(change.remedy for change in self._changes))
        message = (
            f"signatures: expected few of them, got {self._events} in {self.steps - self._since} steps that "
            f"displaced another or started over (max_graphs is {max_graphs}), each with a warm-up and a "
            f"capture. Changes: {what}. Remedies: {remedies}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=5)


def _kinds(values: Iterable[Any]) -> tuple[object, ...]:
    return tuple([_OF_TENSOR(value) if isinstance(value, Tensor) else _kind(value) for value in values])


def _kind(value: Any) -> object:
    """The kind of an argument that is not a tensor."""
    if isinstance(value, float):
        return float
    if value is not None and not isinstance(value, int | str):
        expected = "tensors, numbers, strings and None"
        check.fail("arguments", expected, check.describe(value), TypeError)
    return type(value), value


def _change(label: str, one: Any, other: Any) -> Change:
    """The difference between two kinds: three items for a tensor, two for a value, the type for a float."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        if len(one) == 3:
            if one[0] != other[0]:
                return Change(f"the shape of {label}", _PAD)
            return Change(f"the dtype or the device of {label}", _FEWER)
        if one[0] is other[0]:
            kind = one[0].__name__
            return Change(f"the value of the {kind} {label}", _NUMBER if one[0] is int else _FEWER)
    return Change(f"the type of {label}", _FEWER)
