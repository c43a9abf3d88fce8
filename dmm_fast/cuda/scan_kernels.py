"""Facts about the compiled kernels of the scans: which there are, and the shared memory that a plan takes.

``csrc/cuda/scan_kernels.h`` and the kernels' argument structs state them; the compiled library tells them, so
that a plan is made of the same numbers as its launch.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

from dmm_fast import _extension


@lru_cache
def kernels(kind: str) -> tuple[tuple[int, ...], ...]:
    """The sizes of each kernel of a kind, in the order of ``csrc/cuda/scan_kernels.h``.

    Raises:
        RuntimeError: there is no compiled library, or no such kind.
    """
    listed: str = _library()._scan_kernels(kind)
    return tuple(tuple(map(int, sizes.split(","))) for sizes in listed.split())


def shared_bytes(scan: str, numbers: Sequence[int], latents: int = 0) -> int:
    """Bytes of shared memory that a block takes, of a plan as the compiled op ``scan`` takes it.

    Raises:
        RuntimeError: there is no compiled library, or it is no plan of that scan.
    """
    taken: int = _library()._scan_shared_bytes(scan, numbers, latents)
    return taken


def _library() -> "torch._ops._OpNamespace":
    if _extension.missing is not None:
        raise RuntimeError(
            f"plans are made by the compiled library, which is not there: {_extension.missing}"
        )
    return torch.ops.dmm_fast
