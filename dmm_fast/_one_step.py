"""A step of training, in which guide and model do the same with the same data and parameters: once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Held(threading.local):
    """Results of the step that this thread is in, by what made them."""

    results: dict[Any, Any] | None = None


_held = _Held()


@contextmanager
def one_step() -> Iterator[None]:
    """Keep within what is checked and registered for the guide, for the model that follows."""
    before, _held.results = _held.results, {}
    try:
        yield
    finally:
        _held.results = before


def results() -> dict[Any, Any] | None:
    """The results of the step that this thread is in, to read and to add to; None outside of one."""
    return _held.results
