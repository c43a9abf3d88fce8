"""Queries of the compiled library about the scans: instantiated kernels, and the shared memory of a plan.

The facts are stated in ``csrc/cuda/scan_kernels.h`` and in the kernels' argument structs. They are queried
from the compiled library, so that a plan and its launch use the same numbers.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from dmm_fast import _extension


@lru_cache
def kernels(kind: str) -> tuple[tuple[int, ...], ...]:
    """The template sizes of each kernel of a kind, in the order of ``csrc/cuda/scan_kernels.h``.

    Raises:
        RuntimeError: the compiled library is missing, or the kind is unknown.
    """
    listed: str = _library()._scan_kernels(kind)
    return tuple(tuple(map(int, sizes.split(","))) for sizes in listed.split())


def shared_bytes(scan: str, numbers: Sequence[int], latents: int = 0) -> int:
    """Shared memory per block in bytes, for a plan in the form of an argument of the compiled op ``scan``.

    Raises:
        RuntimeError: the compiled library is missing, or the numbers are not a plan of that scan.
    """
    taken: int = _library()._scan_shared_bytes(scan, numbers, latents)
    return taken


def _library() -> "torch._ops._OpNamespace":
    if _extension.missing is not None:
        raise RuntimeError(f"plans need the compiled library, which is missing: {_extension.missing}")
    return torch.ops.dmm_fast
