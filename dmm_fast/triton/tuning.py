"""The number of places and of warps per program of a rowwise kernel: by a rule, or by autotuning.

This module is imported also if Triton is not installed.
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

# Number of programs that fill a GPU: two for each multiprocessor of an H100.
ENOUGH = 264


def cdiv(size: int, block: int) -> int:
    """The number of blocks that cover ``size``."""
    return -(-size // block)


class Config(NamedTuple):
    """The options of a launch, under the names used by Triton and the kernels."""

    BLOCK_M: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """The options of a launch over tiles of rows and columns, summed over a block of inputs at a time."""

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
    """Switch autotuning of the rowwise kernels on or off: timing a few block sizes and keeping the fastest.

    Each kernel is tuned once for its feature sizes and dtype, on the first batch, and keeps the choice for
    batches of any size, so begin with a typical batch. Within the capture of a CUDA graph, kernels that have
    not been tuned use the rule. Choices, and with them the last digits of sums, may differ between runs. The
    scans have a single configuration, since their time is the latency of dependent steps.

    Raises:
        TypeError: ``on`` is not a bool.
    """
    global _measures
    check.kind("on", on, bool)
    _measures = on


def by_rule(count: int) -> Config:
    """Fewer places per program if the batch would otherwise not occupy every multiprocessor."""
    return Config(BLOCK_M=16 if count <= FEW_PLACES else 32, num_warps=8, num_stages=3)


def tiles_by_rule(count: int, widths: tuple[int, ...], least_warps: int = 1) -> Tiles:
    """Few rows per program for whole rows; otherwise narrow blocks of the columns of ``widths``.

    Tiles have at most 64 rows, as in a GPU's largest matrix instructions.
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
    """The fastest candidate for launches with this key if autotuning is on, else that of the rule."""
    if not _measures:
        return rule
    if key not in _fastest and not is_captured(on):
        _fastest[key] = min(candidates, key=partial(milliseconds, run))
    chosen: Choice = _fastest.get(key, rule)
    return chosen


def is_captured(on: Tensor) -> bool:
    """True if launches are now captured into a CUDA graph."""
    return on.is_cuda and torch.cuda.is_current_stream_capturing()


def milliseconds(run: Callable[[Choice], None], config: Choice) -> float:
    """The time of the launch in milliseconds; infinite if the GPU lacks the resources for it."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(partial(run, config)))
    except OutOfResources:
        return math.inf
