"""Plans of ``rnn_scan`` with outputs that belong to warps, whose lanes share the inputs.

``csrc/cuda/rnn_scan_warps.cuh`` has the kernels.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import NETWORK

CHUNK = 128  # inputs, of which a lane has four
WARPS = 8  # of a block, two of them on each of the four schedulers
MOST_GROUPS = 8

# Cycles of a group's step besides its instructions: what the warps of a scheduler cannot hide from each
# other, and the time from a store to another block's memory until it is seen there. An H100 80GB HBM3 at
# 1980 MHz took so much in kernels of ten warps a block (B = 20, H = 600), other groups having work or not.
_LATENCY = 500.0
_ALONE = 150.0  # where a block has no other to exchange with


class WarpTiling(NamedTuple):
    """Outputs dealt to the warps of a block; ``csrc/cuda/warp_tile.h`` has the same fields."""

    chunks: int  # of inputs
    outputs: int  # of a warp
    in_registers: int  # chunks whose weights are there

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * WARPS

    @property
    def block_outputs(self) -> int:
        """Outputs of a block."""
        return WARPS * self.outputs

    @property
    def quads(self) -> int:
        """Quads of inputs that a lane multiplies by each output."""
        return self.chunks

    @property
    def in_shared(self) -> int:
        """Quads of each output whose weights are in shared memory."""
        return self.chunks - self.in_registers

    @property
    def tensor_tiles(self) -> int:
        """Tensor cores are not used."""
        return 0

    @property
    def kept(self) -> int:
        """Weights in a thread's registers."""
        return 4 * self.outputs * self.in_registers

    @property
    def shared_weights(self) -> int:
        """Weights of a thread in shared memory."""
        return 4 * self.outputs * self.in_shared

    def instructions(self, rows: int, several: bool = False) -> int:
        """Instructions of a warp in a step of a group, within 5% of the machine code for 9.0."""
        sums = rows * self.outputs
        loads = self.chunks * rows
        loads += self.in_shared * (self.outputs + 13)  # of weights, in a loop
        additions, left = 0, sums
        for _ in range(5):  # a shuffle, an addition and, where lanes deal two sums, two selections
            half = (left + 1) // 2
            additions += 2 * half + 2 * (left - half)
            left = half
        stores = 20 * -(-rows * self.block_outputs // 128)
        return 4 * sums * self.chunks + loads + additions + stores + 100 + 67 * several

    def cycles(self, rows: int, several: bool = False) -> float:
        """Estimated time that the two warps of a scheduler take for a group's step."""
        return 2.0 * self.instructions(rows, several)


class Cut(NamedTuple):
    """A way of cutting up; ``cycles`` of a step of one cluster."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: WarpTiling
    shared_bytes: int
    cycles: float


def warp_cuts(units: int, backward: bool, most_rows: int) -> Iterator[Cut]:
    """All for so many units and at most so many rows of a cluster."""
    scan = "rnn_scan_backward" if backward else "rnn_scan"
    for chunks, outputs, in_registers, rows, several in kernels("rnn_scan_warps"):
        tiling = WarpTiling(chunks, outputs, in_registers)
        size = -(-units // tiling.block_outputs)
        if size * tiling.block_outputs > CHUNK * chunks or size > 16:
            continue
        if size == 1 and chunks > 1:  # one chunk would do; the kernel is empty where there are no clusters
            continue
        of_cluster = range(rows + 1, MOST_GROUPS * rows + 1) if several else (rows,)
        for count in takewhile(lambda count: count <= most_rows, of_cluster):
            used = shared_bytes(scan, [count, rows, size, *tiling])
            latency = _LATENCY if size > 1 else _ALONE
            busy = tiling.cycles(rows, bool(several)) + latency
            received = 4 * rows * tiling.block_outputs * (size - 1)
            # What one group gives travels while the others compute.
            cycles = max(-(-count // rows) * busy, busy + received / NETWORK)
            yield Cut(count, rows, size, tiling, used, cycles)
