"""Cost model of the exchange through device memory by flagged words: ``csrc/cuda/flagged_words.cuh``.

A block stores a word to the L2 cache, where the other blocks poll for it. The store arrives after half the
latency of a load. The next poll reaches the word half a period later, on average, and returns after another
half latency. A thread polls again when its last poll has returned, so the period is the latency of a load::

    seen = latency / 2 + latency / 2 + latency / 2

If several groups alternate, all of this is hidden except for the poll that succeeds. The words of all blocks
share the bandwidth of the cache.
"""

from dmm_fast.cuda.devices import Device

_MOST_NUMBERS = 3  # maximum number of elements of a word, beside its flag


def word_bytes(numbers: int) -> int:
    """Bytes of the words for ``numbers`` elements: eight bytes for one, sixteen for up to three."""
    whole, rest = divmod(numbers, _MOST_NUMBERS)
    return 16 * whole + (0, 8, 16)[rest]


def poll_cycles(device: Device) -> float:
    """Cycles of a poll that finds its word: a load from the L2 cache."""
    return device.architecture.l2_latency


def travel_cycles(device: Device) -> float:
    """Cycles from the store of a word until the poll that finds it is issued."""
    return device.architecture.l2_latency / 2


def read_cycles(device: Device, received: int, blocks: int) -> float:
    """Cycles in which each of ``blocks`` blocks receives the words of a step, ``received`` bytes."""
    return received / device.l2_bytes(blocks)
