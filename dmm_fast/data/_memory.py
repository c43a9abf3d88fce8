"""A bound on the memory used for reading a file, checked before each allocation."""

from __future__ import annotations

from dmm_fast import check

DEFAULT_BYTES = 8 << 30


class Memory:
    """A counter of the memory that a file requires.

    Args:
        max_bytes: the largest total in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._taken = max_bytes, 0

    def take(self, name: str, num_bytes: int) -> None:
        """Count ``num_bytes`` that are about to be allocated for ``name``.

        Raises:
            ValueError: the total exceeds ``max_bytes``.
        """
        self._taken += num_bytes
        if self._taken > self._max_bytes:
            expected = f"a file that takes at most max_bytes = {self._max_bytes} bytes of memory"
            check.fail(name, expected, f"one that takes {self._taken} or more")
