"""Numbers of places and of warps for a program of a rowwise kernel: by a rule, or by measuring.

The package imports this module where there is no triton too.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dmm_fast import check

FEW_PLACES = 8192

# Programs that keep a GPU busy: two on each multiprocessor of an H100.
ENOUGH = 264


def cdiv(size: int, block: int) -> int:
    """Blocks that cover ``size``."""
    return -(-size // block)


class Config(NamedTuple):
    """A launch's options, by Triton's names and the kernels'."""

    BLOCK_M: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """The same of a launch over tiles of rows and columns, each summed over a block of inputs at a time."""

    BLOCK_M: int = 64
    BLOCK_N: int = 64
    BLOCK_K: int = 32
    num_warps: int = 4
    num_stages: int = 3


Choice = TypeVar("Choice", Config, Tiles)

CANDIDATES = tuple(Config(*choice) for choice in product((16, 32, 64), (4, 8), (2, 3)))
TILES = tuple(Tiles(*choice) for choice in product((16, 32, 64), (32, 64, 128), (16, 32)))

_measures = False
_fastest: dict[Any, Any] = {}


def autotune(on: bool = True) -> None:
    """From now on, let the rowwise kernels measure which of :data:`CANDIDATES` is the fastest; or no more.

    Each does so once for its feature sizes and dtype, on the first batch that it meets, and keeps to it for
    batches of any size: begin with a usual one. Within a CUDA graph's capture what is not known by then goes
    by the rule. Choices may differ from run to run, and with them the last digits of a sum. The scans have
    one configuration: a step waits for the one before it whatever the blocks.

    Raises:
        TypeError: ``on`` is no bool.
    """
    global _measures
    check.kind("on", on, bool)
    _measures = on


def by_rule(count: int) -> Config:
    """Few places a program where the batch would not give each multiprocessor one."""
    return Config(BLOCK_M=16 if count <= FEW_PLACES else 32, num_warps=8, num_stages=3)


def tiles_by_rule(count: int, widths: tuple[int, ...], least_warps: int = 1) -> Tiles:
    """Few rows a program where it has whole ones; else few columns, which are those of ``widths``.

    64 rows are what a GPU's largest products take.
    """
    if not widths:
        rows, warps = (16, 4) if count <= FEW_PLACES else (32, 8)
        warps = max(warps, least_warps)
        # Measured on an H100 with four warps: 5% and 12% faster than 32 inputs at a time.
        return Tiles(BLOCK_M=rows, BLOCK_N=128, BLOCK_K=16 if warps == 4 else 32, num_warps=warps)
    programs = cdiv(count, 64) * sum(cdiv(width, 64) for width in widths)
    return Tiles(BLOCK_N=32 if programs < ENOUGH else 64)


def choose(
    run: Callable[[Choice], None], candidates: tuple[Choice, ...], rule: Choice, key: Any, on: Tensor
) -> Choice:
    """The candidate with which ``run`` is the fastest, for launches with this key; or that by rule."""
    if not _measures:
        return rule
    if key not in _fastest and not is_captured(on):
        _fastest[key] = min(candidates, key=partial(milliseconds, run))
    chosen: Choice = _fastest.get(key, rule)
    return chosen


def is_captured(on: Tensor) -> bool:
    """Whether what is launched now becomes a part of a CUDA graph."""
    return on.is_cuda and torch.cuda.is_current_stream_capturing()


def milliseconds(run: Callable[[Choice], None], config: Choice) -> float:
    """The time of the launch in milliseconds; infinite where the GPU lacks the memory for it."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(partial(run, config)))
    except OutOfResources:
        return math.inf
