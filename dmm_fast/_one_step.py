"""A cache for one training step, for work that guide and model share: checks and registrations."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Held(threading.local):
    """Cached results of this thread's current step."""

    results: dict[Any, Any] | None = None


_held = _Held()


@contextmanager
def one_step() -> Iterator[None]:
    """Cache the guide's checks and registrations within the block, for the model that runs after it."""
    before, _held.results = _held.results, {}
    try:
        yield
    finally:
        _held.results = before


def results() -> dict[Any, Any] | None:
    """The cache of this thread's current step, to read and to add to; None outside a step."""
    return _held.results
