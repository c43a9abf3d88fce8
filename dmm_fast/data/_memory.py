"""A bound on the memory that reading a file takes, kept before anything is allocated."""

from __future__ import annotations

from dmm_fast import check

DEFAULT_BYTES = 8 << 30


class Memory:
    """Counts what a file asks for.

    Args:
        max_bytes: how much that may be in all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._taken = max_bytes, 0

    def take(self, name: str, num_bytes: int) -> None:
        """Count ``num_bytes`` for ``name``, which are about to be allocated.

        Raises:
            ValueError: with these it is more than ``max_bytes``.
        """
        self._taken += num_bytes
        if self._taken > self._max_bytes:
            expected = f"a file that takes at most max_bytes = {self._max_bytes} bytes of memory"
            check.fail(name, expected, f"one that takes {self._taken} or more")
