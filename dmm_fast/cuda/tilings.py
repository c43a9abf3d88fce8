"""Plans of the scans' general kernels, for any sizes: a thread has four outputs and some of the inputs.

The products are in ``csrc/cuda/matrix.cuh`` for float32 and in ``csrc/cuda/tensor_cores.cuh`` for tf32.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from dmm_fast.cuda.devices import Device
from dmm_fast.cuda.scan_kernels import kernels

THREADS = 256  # threads per block, so that each may have 255 registers
CHUNK = 4  # rows multiplied at once
TENSOR_CHUNK = 16  # the same on tensor cores

# Cycles, and bytes per cycle, of one multiprocessor.
EXCHANGE = 350  # from a store to another block's memory until it is visible there
_BARRIER = 60  # a barrier of a block, and a load from shared memory
NETWORK = 14.0  # bytes received from other blocks, measured on an H100
_L2 = 48.0  # bytes from L2, if not too many multiprocessors share its bandwidth
_SHARED = 128.0  # bytes of shared memory
TENSOR = 7.0  # an m16n8k8 product in tf32, on one of four tensor cores
# A quad that is not in registers: 30 cycles of load latency and a taken branch. The loop over these quads is
# not unrolled, so loads do not overlap with the multiplication of another quad.
_LOOP = 50

# Further cycles of a group at every step, independent of its number of rows and not hidden by other groups:
# fitted to the time of these kernels on an NVIDIA H100 80GB HBM3 at 1980 MHz (B = 20, H = 600, Z = 100;
# rnn_scan with 2 to 4 rows in clusters of 8 and 16, combiner_scan with 2 rows in clusters of 8). The machine
# code accounts for two thirds: row counts, addresses, addition of partial sums, remote stores.
RNN_GROUP = 2_650
COMBINER_GROUP = 5_700


class Tiling(NamedTuple):
    """The tiling of a block's slice of a matrix; ``csrc/cuda/tiling.h`` has the same fields."""

    inputs: int
    outputs: int
    groups: int  # groups of four outputs, one per thread
    parts: int  # parts of the inputs, each with partial sums
    quads: int  # quads of four inputs per part
    in_registers: int  # quads with weights in registers
    in_shared: int  # further quads with weights in shared memory; all others are read from device memory
    # Tiles of 16 outputs per warp on tensor cores, or 0; with them groups have 16 outputs, quads 8 inputs.
    tensor_tiles: int = 0

    @property
    def chunk(self) -> int:
        """The number of rows multiplied at once."""
        return TENSOR_CHUNK if self.tensor_tiles else CHUNK

    @property
    def width(self) -> int:
        """The number of partial sums of a row."""
        return (16 if self.tensor_tiles else 4) * self.groups

    @property
    def kept(self) -> int:
        """Weights per thread in registers."""
        return self.in_registers * (4 * self.tensor_tiles or 16)

    @property
    def shared_weights(self) -> int:
        """Weights per thread in shared memory."""
        return 16 * self.in_shared

    @property
    def threads(self) -> int:
        """The number of threads that the tiling needs."""
        if self.tensor_tiles:
            return -(-self.groups // self.tensor_tiles) * self.parts * 32
        return -(-min(self.groups, THREADS) * self.parts // 32) * 32

    @property
    def stride(self) -> int:
        """The number of elements of a row in shared memory."""
        return 8 * self.parts * self.quads + 4 if self.tensor_tiles else 4 * self.parts * self.quads

    @property
    def partials(self) -> int:
        """The number of partial sums of a chunk of rows."""
        return self.chunk * self.parts * self.width

    def cycles(self, rows: int, ffma_cycles: int, l2_bytes: float) -> float:
        """Estimated cycles for multiplying a group of ``rows`` and adding the partial sums.

        ``l2_bytes`` is the L2 bandwidth in bytes per cycle.
        """
        if self.tensor_tiles:
            multiply = -(-self.threads // 128) * self.quads * self.tensor_tiles * -(-rows // 8) * TENSOR
        else:
            quad = 16.0 * ffma_cycles + 1.0  # 16 multiplications and a load
            multiply = -(-self.threads // 128) * self.quads * quad * rows
        shared = self.in_shared * self.threads * 64 / _SHARED
        streamed = (self.quads - self.in_registers - self.in_shared) * self.threads * 64 / min(_L2, l2_bytes)
        loop = (self.quads - self.in_registers) * _LOOP
        sums = 2 * 4 * self.partials / self.chunk * rows / _SHARED
        return max(multiply, shared) + streamed + loop + sums + 2 * _BARRIER


@lru_cache(maxsize=1024)
def tiling_of(inputs: int, outputs: int, registers: int) -> Tiling:
    """A tiling with a thread for each group and part, so that registers hold the weights if they fit."""
    groups, quads = -(-outputs // 4), -(-inputs // 4)
    if groups > THREADS:  # a thread processes several groups one after another and keeps no weights
        return Tiling(inputs, outputs, groups, 1, quads, 0, 0)
    parts = min(THREADS // groups, -(-quads // max(registers, 1)))
    return Tiling(inputs, outputs, groups, parts, max(-(-quads // parts), registers), registers, 0)


@lru_cache(maxsize=1024)
def tensor_tilings(inputs: int, outputs: int) -> list[Tiling]:
    """Tilings for tensor cores that keep all weights in the registers of a block's warps."""
    groups, quads = -(-outputs // 16), -(-inputs // 8)
    found = []
    for tiles, most in kernels("rnn_scan_tensor_cores"):
        parts = -(-quads // most)
        tiling = Tiling(inputs, outputs, groups, parts, most, most, 0, tiles)
        if tiling.threads <= THREADS:
            found.append(tiling)
    return found


def step_cycles(
    tilings: Sequence[Tiling],
    rows: int,
    at_once: int,
    cluster_size: int,
    received: int,
    fixed: float,
    device: Device,
    all_rows: int,
) -> float:
    """Estimated cycles of a step of a cluster in a batch of ``all_rows`` rows.

    A block receives ``received`` bytes for each row and step; a group takes ``fixed`` further cycles.
    """
    clusters = min(-(-all_rows // rows), device.at_once(cluster_size))
    l2_bytes = device.l2_bytes(clusters * cluster_size)
    busy = fixed + sum(tiling.cycles(at_once, device.ffma_cycles, l2_bytes) for tiling in tilings)
    network = 0.0 if cluster_size == 1 else received * at_once / NETWORK
    exchange = _BARRIER if cluster_size == 1 else EXCHANGE + network
    groups = -(-rows // at_once)
    # Work of other groups hides only the transfer time of a group, and all groups share the network.
    return max(groups * busy, busy + exchange, groups * network)
