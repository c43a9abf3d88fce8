"""Types of command-line options."""

import argparse
from collections.abc import Callable


def whole_number(lowest: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``lowest`` for ``argparse``."""

    def read(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest}, got {text!r}")
        return int(text)

    return read
