"""Cuts of ``rnn_scan`` for few rows a cluster: outputs that belong to warps, whose lanes share the inputs.

``csrc/cuda/rnn_scan_warps.cuh`` has the kernels, ``csrc/cuda/warp_cuts.h`` the same list of them.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

CHUNK = 128  # units of which a lane has four
_FEW = ((1, 1), (2, 2), (3, 2), (4, 2))  # rows of a cluster, rows of a group
_MANY = (*_FEW, (2, 1), (3, 1), (3, 3))
_OUTPUTS = ((1, 4), (2, 4), (3, 4), (4, 4), (5, 4), (5, 5), (6, 4))  # chunks of units, outputs of a warp
# What there are kernels for: chunks of units, outputs of a warp, rows of a cluster, rows of a group.
CUTS = tuple((*outputs, *rows) for outputs in _OUTPUTS for rows in (_MANY if outputs[0] == 5 else _FEW))

# Cycles from a store to the moment when all blocks have seen it; measured for 8 and 16 blocks (0.48 and 0.57
# microseconds at 1980 MHz) on an NVIDIA H100 80GB HBM3, guessed for fewer.
_EXCHANGE = {2: 700.0, 4: 800.0, 8: 950.0, 16: 1_130.0}
# Instructions of a warp besides multiplications, from the machine code for compute capability 9.0.
_OF_GROUP, _OF_ROW = 100.0, 50.0


def most_warps(chunks: int, per_warp: int) -> int:
    """Of a block, so that its threads have registers for their weights."""
    return 8 if per_warp > 4 or chunks < 5 else 2 * chunks


class WarpTiling(NamedTuple):
    """How the outputs of a block are dealt to its warps; all weights are in registers."""

    inputs: int
    outputs: int  # of a block
    per_warp: int

    @property
    def chunks(self) -> int:
        """Of the inputs."""
        return -(-self.inputs // CHUNK)

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * (self.outputs // self.per_warp)

    @property
    def quads(self) -> int:
        """Of inputs that a lane multiplies."""
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
        return 4 * self.per_warp * self.chunks

    def cycles(self, rows: int) -> float:
        """Estimated time of a group's step, from the wait for its state to the last store."""
        warps = self.outputs // self.per_warp
        issued = -(-warps // 4) * (rows * self.kept + _OF_GROUP + _OF_ROW * rows)
        return max(issued, 4.0 * warps * rows * self.chunks)  # 512 bytes of shared memory for each


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
    for (chunks, per_warp, rows, at_once), (size, exchange) in product(cuts, _EXCHANGE.items()):
        warps = -(-units // (size * per_warp))
        if warps <= most_warps(chunks, per_warp):
            tiling = WarpTiling(units, warps * per_warp, per_warp)
            groups = [min(at_once, rows - first) for first in range(0, rows, at_once)]
            twos = sum(-(-count // 2) for count in groups)
            used = 16 * rows + 16 * len(groups) + 8 * (rows * CHUNK * chunks + 4 * twos)
            busy = [tiling.cycles(count) for count in groups]
            # What one group gives travels while the others compute.
            yield Cut(rows, at_once, size, tiling, used, max(sum(busy), busy[0] + exchange))
