"""Cuts of ``rnn_scan`` for few rows a cluster: outputs that belong to warps, whose lanes share the inputs.

``csrc/cuda/rnn_scan_warps.cuh`` has the kernels, ``csrc/cuda/warp_cuts.h`` the same list of them.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

CHUNK = 128  # units of which a lane has four
PER_WARP = 4  # outputs
_FEW = ((1, 1), (2, 2), (3, 2), (4, 2))  # rows of a cluster, rows of a group
_MANY = (*_FEW, (2, 1), (3, 1), (3, 3))
_GIVEN = ((1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 1), (6, 0))  # chunks of units, 1 where a block gives
# What there are kernels for: chunks of units, rows of a cluster, rows of a group, 1 where the outputs of a
# block are given together and 0 where each warp gives its own.
CUTS = tuple(
    (chunks, *rows, gathered) for chunks, gathered in _GIVEN for rows in (_MANY if chunks == 5 else _FEW)
)

SIZES = (2, 4, 8, 16)  # of clusters
# Fitted to what eight of these cuts took on an NVIDIA H100 80GB HBM3 at 1980 MHz (B = 20, H = 600, clusters
# of 16). Cycles of a group's turn besides the multiplications; from its last store to the moment when all
# blocks have seen it, where warps give and where blocks do; and bytes a cycle that a block receives. A store
# of a block goes to one other block, which is sooner there than stores to many, but its warps have to meet.
_OF_GROUP, _OF_ROW = 915.0, 5.0
_LATENCY = (330.0, 20.0)
_BYTES = 14.0
_MEETING = 130.0


def most_warps(chunks: int) -> int:
    """The most warps of a block whose threads have registers for their weights."""
    return 8 if chunks < 5 else 2 * chunks


class WarpTiling(NamedTuple):
    """The outputs of a block, dealt to its warps; all weights are in registers."""

    inputs: int
    outputs: int  # of a block
    gathered: int  # 1 where a block gives them together, 0 where each warp gives its own

    @property
    def per_warp(self) -> int:
        """Outputs of a warp."""
        return PER_WARP

    @property
    def chunks(self) -> int:
        """Chunks of the inputs."""
        return -(-self.inputs // CHUNK)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.outputs // PER_WARP)

    @property
    def quads(self) -> int:
        """Quads of inputs that a lane multiplies."""
        return self.chunks

    @property
    def in_registers(self) -> int:
        """Quads whose weights are in registers: all."""
        return self.chunks

    @property
    def in_shared(self) -> int:
        """And in shared memory: none."""
        return 0

    @property
    def tensor_tiles(self) -> int:
        """Tensor cores are not used."""
        return 0

    @property
    def kept(self) -> int:
        """Weights in a thread's registers."""
        return 4 * PER_WARP * self.chunks

    def cycles(self, rows: int) -> float:
        """Estimated time of a group's step, from the wait for its state to the last store."""
        multiply = -(-self.outputs // (4 * PER_WARP)) * rows * self.kept
        return multiply + _OF_GROUP + _OF_ROW * rows + _MEETING * self.gathered


class Cut(NamedTuple):
    """A way of cutting up; ``cycles`` of a step of one cluster."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: WarpTiling
    shared_bytes: int
    cycles: float


def warp_cuts(units: int) -> Iterator[Cut]:
    """All for so many units."""
    cuts = [cut for cut in CUTS if cut[0] == -(-units // CHUNK)]
    for (chunks, rows, at_once, gathered), size in product(cuts, SIZES):
        warps = -(-units // (size * PER_WARP))
        if warps <= most_warps(chunks):
            tiling = WarpTiling(units, warps * PER_WARP, gathered)
            groups = [min(at_once, rows - first) for first in range(0, rows, at_once)]
            used = 16 * rows + 16 * len(groups) + 8 * rows * CHUNK * chunks
            busy = [tiling.cycles(count) for count in groups]
            exchange = _LATENCY[gathered] + 4 * units * groups[0] / _BYTES
            # What one group gives travels while the others compute.
            yield Cut(rows, at_once, size, tiling, used, max(sum(busy), busy[0] + exchange))
