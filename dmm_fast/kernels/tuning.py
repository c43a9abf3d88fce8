"""How many places a program of a rowwise kernel takes, and how many warps: by a rule, or by measuring."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

FEW_PLACES = 8192


class Config(NamedTuple):
    """A launch's options, by Triton's names and the kernels'."""

    BLOCK_M: int
    num_warps: int
    num_stages: int


Run = Callable[[Config], None]

CANDIDATES = tuple(Config(*choice) for choice in product((16, 32, 64), (4, 8), (2, 3)))

_measures = False
_fastest: dict[Any, Config] = {}


def autotune(on: bool = True) -> None:
    """From now on, let the rowwise kernels measure which of :data:`CANDIDATES` is the fastest; or no more.

    Each does so once for its feature sizes and dtype, on the first batch that it meets, and keeps to it for
    batches of any size: begin with a usual one. Within a CUDA graph's capture what is not known by then goes
    by the rule. Choices may differ from run to run, and with them the last digits of a sum. The scans have
    one configuration: a step waits for the one before it whatever the blocks.
    """
    global _measures
    _measures = on


def by_rule(count: int) -> Config:
    """Few places a program where the batch would not give each multiprocessor one."""
    return Config(BLOCK_M=16 if count <= FEW_PLACES else 32, num_warps=8, num_stages=3)


def choose(run: Run, count: int, on: Tensor, kernel: Any, options: dict[str, Any]) -> Config:
    """The config for ``run``, which launches ``kernel`` with these constants over ``count`` places."""
    if not _measures:
        return by_rule(count)
    key = kernel.fn, repr(options), on.dtype, on.device
    if key not in _fastest and not is_captured(on):
        _fastest[key] = min(CANDIDATES, key=partial(milliseconds, run))
    return _fastest.get(key) or by_rule(count)


def is_captured(on: Tensor) -> bool:
    """Whether what is launched now becomes a part of a CUDA graph."""
    return on.is_cuda and torch.cuda.is_current_stream_capturing()


def milliseconds(run: Run, config: Config) -> float:
    """How long the launch takes; for ever, where the GPU has not the memory for it."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(partial(run, config)))
    except OutOfResources:
        return math.inf
