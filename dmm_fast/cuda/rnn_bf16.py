"""Plans of ``rnn_scan`` for large batches, multiplied in bf16 on tensor cores.

``csrc/cuda/rnn_scan_bf16.cuh`` has the kernels, and ``csrc/cuda/bf16_tile.h`` the layout.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import NETWORK

OUTPUTS, INPUTS, ROWS = 16, 16, 8  # of the product of two tiles
LEAST_ROWS = 64  # of a batch

# Cycles: published throughputs of a multiprocessor, an exchange as an H100 80GB HBM3 took it, and what a warp
# takes along the machine code for 9.0 for a group's step and for each tile of rows, besides its products.
_PRODUCT = 8.0  # of two tiles, on one of four tensor cores
_SHARED = 128.0  # bytes of shared memory a cycle
_GROUP, _TILE = 400.0, 200.0
_LATENCY = 500.0  # from a store to another block's memory until it is seen there


class Bf16Tiling(NamedTuple):
    """Tiles of outputs and of inputs dealt to warps; ``csrc/cuda/bf16_tile.h`` has the same fields."""

    warps: int  # of a block
    parts: int  # that the inputs are dealt to; also the warps of a bundle, which add up their sums
    quads: int  # tiles of 16 inputs in a part
    in_registers: int  # of these, tiles whose weights are there
    row_tiles: int  # of 8 rows, in a group

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def outputs(self) -> int:
        """Outputs of a block."""
        return OUTPUTS * self.warps

    @property
    def inputs(self) -> int:
        """Inputs, at most."""
        return INPUTS * self.quads * self.parts

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return ROWS * self.row_tiles

    @property
    def in_shared(self) -> int:
        """Tiles of a part whose weights are in shared memory."""
        return self.quads - self.in_registers

    @property
    def tensor_tiles(self) -> int:
        """Tiles of 16 outputs that a warp multiplies."""
        return self.parts

    @property
    def kept(self) -> int:
        """Weights in a thread's registers, of which one has two."""
        return 8 * self.parts * self.in_registers

    @property
    def shared_weights(self) -> int:
        """Weights of a thread in shared memory."""
        return 8 * self.parts * self.in_shared

    @property
    def products(self) -> int:
        """Products of two tiles that each of the four tensor cores makes for a group's step."""
        return -(-self.warps // 4) * self.parts * self.quads * self.row_tiles

    @property
    def shared_bytes_read(self) -> int:
        """Bytes of shared memory that a block reads and writes for a group's step."""
        state = self.quads * self.row_tiles * 32 * ROWS
        sums = self.parts * self.row_tiles * 2 * 4 * OUTPUTS * ROWS
        return self.warps * (state + sums + 512 * self.parts * self.in_shared)

    @property
    def cycles(self) -> float:
        """Estimated time of a group's step: a warp multiplies while another does the rest of its own."""
        products = self.products * _PRODUCT
        alone = products / -(-self.warps // 4) + _GROUP + _TILE * self.row_tiles
        return max(products, alone, self.shared_bytes_read / _SHARED)


class Cut(NamedTuple):
    """A way of cutting up; ``cycles`` of a step of one cluster."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: Bf16Tiling
    shared_bytes: int
    cycles: float


def has_bf16(rows: int, units: int) -> bool:
    """Whether there may be a plan in bf16 for a batch of so many rows."""
    return rows >= LEAST_ROWS and units % 4 == 0


def received(tiling: Bf16Tiling, units: int, rows: int) -> int:
    """Bytes that come to a block from the others for a step of so many rows, at most."""
    own = units % tiling.outputs or tiling.outputs  # of the block that has the fewest units
    return 2 * rows * (units - own)


def bf16_cuts(units: int, backward: bool, rows: int, most_rows: int) -> Iterator[Cut]:
    """All for so many units, and a batch of so many rows of which a cluster has at most ``most_rows``."""
    if not has_bf16(rows, units):
        return
    scan = "rnn_scan_backward" if backward else "rnn_scan"
    for sizes in kernels("rnn_scan_bf16"):
        tiling = Bf16Tiling(*sizes)
        size = -(-units // tiling.outputs)
        if units > tiling.inputs or not 1 < size <= 16:
            continue
        for count in range(1, most_rows + 1):
            groups = -(-count // tiling.rows)
            at_once = -(-count // groups)
            used = shared_bytes(scan, [count, at_once, size, *tiling])
            network = received(tiling, units, count) / NETWORK
            exchange = _LATENCY + received(tiling, units, at_once) / NETWORK
            # What one group gives travels while the others compute, and all share the network.
            cycles = max(groups * tiling.cycles, tiling.cycles + exchange, network)
            yield Cut(count, at_once, size, tiling, used, cycles)
