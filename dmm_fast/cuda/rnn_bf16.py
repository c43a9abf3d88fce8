"""Plans of ``rnn_scan`` for large batches, in bf16 on tensor cores.

``csrc/cuda/rnn_scan_bf16.cuh`` has the kernels, and ``csrc/cuda/bf16_tile.h`` the layout.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import NETWORK

OUTPUTS, INPUTS, ROWS = 16, 16, 8  # sizes of an MMA, m16n8k16
LEAST_ROWS = 64  # smallest batch for which bf16 is used

# Cycles: published throughputs of a multiprocessor, the exchange time measured on an H100 80GB HBM3, and the
# cycles of a warp, from the machine code for 9.0, for a group's step and for each tile of rows, without MMAs.
_PRODUCT = 8.0  # cycles of an MMA on one of four tensor cores
_SHARED = 128.0  # bytes of shared memory per cycle
_GROUP, _TILE = 400.0, 200.0
_LATENCY = 500.0  # from a store to another block's memory until it is visible there


class Bf16Tiling(NamedTuple):
    """Assignment of tiles of outputs and inputs to warps; ``csrc/cuda/bf16_tile.h`` has the same fields."""

    warps: int  # warps per block
    parts: int  # parts of the inputs; also the number of warps that add their partial sums
    quads: int  # tiles of 16 inputs per part
    in_registers: int  # tiles of a part with weights in registers
    row_tiles: int  # tiles of 8 rows per group

    @property
    def threads(self) -> int:
        """The number of threads of a block."""
        return 32 * self.warps

    @property
    def outputs(self) -> int:
        """The number of outputs of a block."""
        return OUTPUTS * self.warps

    @property
    def inputs(self) -> int:
        """The maximum number of inputs."""
        return INPUTS * self.quads * self.parts

    @property
    def rows(self) -> int:
        """The number of rows of a group."""
        return ROWS * self.row_tiles

    @property
    def in_shared(self) -> int:
        """Tiles of a part with weights in shared memory."""
        return self.quads - self.in_registers

    @property
    def tensor_tiles(self) -> int:
        """Tiles of 16 outputs per warp."""
        return self.parts

    @property
    def kept(self) -> int:
        """Weights per thread in registers, two per register."""
        return 8 * self.parts * self.in_registers

    @property
    def shared_weights(self) -> int:
        """Weights per thread in shared memory."""
        return 8 * self.parts * self.in_shared

    @property
    def products(self) -> int:
        """MMAs of each of the four tensor cores for a group's step."""
        return -(-self.warps // 4) * self.parts * self.quads * self.row_tiles

    @property
    def shared_bytes_read(self) -> int:
        """Bytes of shared memory that a block reads and writes for a group's step."""
        state = self.quads * self.row_tiles * 32 * ROWS
        sums = self.parts * self.row_tiles * 2 * 4 * OUTPUTS * ROWS
        return self.warps * (state + sums + 512 * self.parts * self.in_shared)

    @property
    def cycles(self) -> float:
        """Estimated cycles of a group's step, in which MMAs of a warp overlap with other work of another."""
        products = self.products * _PRODUCT
        alone = products / -(-self.warps // 4) + _GROUP + _TILE * self.row_tiles
        return max(products, alone, self.shared_bytes_read / _SHARED)


class Cut(NamedTuple):
    """A distribution of the work, with the estimated ``cycles`` of a step of one cluster."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: Bf16Tiling
    shared_bytes: int
    cycles: float


def has_bf16(rows: int, units: int) -> bool:
    """True if there may be a bf16 plan for a batch of ``rows`` rows."""
    return rows >= LEAST_ROWS and units % 4 == 0


def received(tiling: Bf16Tiling, units: int, rows: int) -> int:
    """Maximum bytes that a block receives from the others in a step of ``rows`` rows."""
    own = units % tiling.outputs or tiling.outputs  # units of the block with the fewest
    return 2 * rows * (units - own)


def bf16_cuts(units: int, backward: bool, rows: int, most_rows: int) -> Iterator[Cut]:
    """All plans for these units and a batch of ``rows`` rows, with at most ``most_rows`` per cluster."""
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
            # The transfer of one group overlaps with the computation of others; all share the network.
            cycles = max(groups * tiling.cycles, tiling.cycles + exchange, network)
            yield Cut(count, at_once, size, tiling, used, cycles)
