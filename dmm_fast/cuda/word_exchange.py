"""Cost of exchanging numbers through device memory, in words with a flag: ``csrc/cuda/flagged_words.cuh``.

A block stores a word to the second-level cache, where the others poll for it. It is there after half of
what a load takes, the way out. A poll comes to it half a period later, on average, and takes the other
half, the way back. A thread polls again when its last poll is back, so the period is a load's whole time::

    seen = latency / 2 + latency / 2 + latency / 2

Of this a group that takes turns with others hides all but its one poll that succeeds. The words of all
blocks share the bandwidth of the cache.
"""

from dmm_fast.cuda.devices import Device

_MOST_NUMBERS = 3  # of a word, beside its flag


def word_bytes(numbers: int) -> int:
    """Bytes of the words that hold so many numbers: eight for one, sixteen for up to three."""
    whole, rest = divmod(numbers, _MOST_NUMBERS)
    return 16 * whole + (0, 8, 16)[rest]


def poll_cycles(device: Device) -> float:
    """Cycles of a poll that finds its word: a load from the second-level cache."""
    return device.architecture.l2_latency


def travel_cycles(device: Device) -> float:
    """Cycles from a word's store until the poll that finds it is sent."""
    return device.architecture.l2_latency / 2


def read_cycles(device: Device, received: int, blocks: int) -> float:
    """Cycles in which the words of a step, so many bytes, come to each of so many blocks."""
    return received / device.l2_bytes(blocks)
