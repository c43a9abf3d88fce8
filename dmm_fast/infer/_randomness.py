"""The random numbers of a call, and the mode of the model while it draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmm_fast import check
from dmm_fast.infer._evaluation import evaluating
from dmm_fast.model import DMM

_LARGEST_SEED = (1 << 64) - 1


@contextmanager
def drawing(dmm: DMM, seed: int | None, generator: torch.Generator | None) -> Iterator[None]:
    """Without dropout; with a ``seed``, or one that ``generator`` gives, with random numbers of its own.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``seed`` is out of range, or there is both.
    """
    check.kind("dmm", dmm, DMM)
    seed = _seed_of(seed, generator)
    if seed is None:
        with evaluating(dmm):
            yield
        return
    device = dmm.z_0.device
    with evaluating(dmm), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Those generators alone: torch.manual_seed would seed every GPU.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _seed_of(seed: int | None, generator: torch.Generator | None) -> int | None:
    """The seed that was given, or the next number of the generator that was; None without either."""
    check.kind("generator", generator, torch.Generator, type(None))
    if generator is not None:
        if seed is not None:
            check.fail("generator", "None beside a seed", "both")
        # A network of the user's own may draw too, and knows torch's global generator alone.
        return int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    if seed is None:
        return None
    number = check.integer("seed", seed, "an int from 0")
    if not 0 <= number <= _LARGEST_SEED:
        expected = "an int from 0" if number < 0 else "an int below 2 ** 64"
        check.fail("seed", expected, check.describe(number).removeprefix("int "))
    return number
