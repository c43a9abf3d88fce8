"""Random seeds and evaluation mode for functions that draw from a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmm_fast import check
from dmm_fast.infer._evaluation import evaluating
from dmm_fast.model import DMM

_LARGEST_SEED = (1 << 64) - 1


@contextmanager
def drawing(dmm: DMM, seed: int | None, generator: torch.Generator | None) -> Iterator[None]:
    """Draw within the block without dropout, and with a separate random stream if seeded.

    The seed is ``seed``, or the next random number of ``generator``; without either the block draws from
    torch's global generator.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``seed`` is out of range, or both arguments are given.
    """
    check.kind("dmm", dmm, DMM)
    seed = _seed_of(seed, generator)
    if seed is None:
        with evaluating(dmm):
            yield
        return
    device = dmm.z_0.device
    with evaluating(dmm), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Only these generators, since torch.manual_seed would seed every GPU.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _seed_of(seed: int | None, generator: torch.Generator | None) -> int | None:
    """The given seed, or the next random number of the given generator; None without either."""
    check.kind("generator", generator, torch.Generator, type(None))
    if generator is not None:
        if seed is not None:
            check.fail("generator", "None beside a seed", "both")
        # A seed and not the generator itself, since a user's network may draw from the global generator.
        return int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    if seed is None:
        return None
    number = check.integer("seed", seed, "an int from 0")
    if not 0 <= number <= _LARGEST_SEED:
        expected = "an int from 0" if number < 0 else "an int below 2 ** 64"
        check.fail("seed", expected, check.describe(number).removeprefix("int "))
    return number
