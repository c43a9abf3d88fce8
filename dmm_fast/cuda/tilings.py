"""Plans of the scans' general kernels, which take any sizes: a thread has four outputs and some inputs.

``csrc/cuda/matrix.cuh`` multiplies so in float32, ``csrc/cuda/tensor_cores.cuh`` in tf32.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from dmm_fast.cuda.devices import Device
from dmm_fast.cuda.scan_kernels import kernels

THREADS = 256  # of a block: each may have 255 registers
CHUNK = 4  # rows that are multiplied at once
TENSOR_CHUNK = 16  # on tensor cores

# Cycles, and bytes a cycle, of one multiprocessor.
EXCHANGE = 350  # from a store to another block's memory until it is seen there
_BARRIER = 60  # of a block, and a load from shared memory
NETWORK = 14.0  # bytes from other blocks, as an H100 took them
_L2 = 48.0  # bytes from the second-level cache, where its bandwidth is not shared by too many
_SHARED = 128.0  # bytes of shared memory
TENSOR = 7.0  # a product of 16 x 8 by 8 x 8 in tf32, on one of four tensor cores
# A quad that is not in registers: 30 cycles until its load has come, and a taken branch. The loop over these
# quads is not unrolled, so no load is under way while another quad is multiplied.
_LOOP = 50

# Cycles that a group takes at every step besides, however many rows it has, which no other group hides:
# fitted to the time of these kernels on an NVIDIA H100 80GB HBM3 at 1980 MHz (B = 20, H = 600, Z = 100;
# rnn_scan with 2 to 4 rows in clusters of 8 and 16, combiner_scan with 2 rows in clusters of 8). Two thirds
# are accounted for by the machine code: counting rows, addresses, adding up partial sums, remote stores.
RNN_GROUP = 2_650
COMBINER_GROUP = 5_700


class Tiling(NamedTuple):
    """The way a block multiplies rows by its part of a matrix; ``csrc/cuda/tiling.h`` has the same fields."""

    inputs: int
    outputs: int
    groups: int  # of four outputs; a thread has one
    parts: int  # that the inputs are dealt to, each with partial sums
    quads: int  # of four inputs in a part
    in_registers: int  # quads whose weights are in registers
    in_shared: int  # and the next, in shared memory; the rest is read from device memory at every step
    # Not 0: of 16 outputs, to a warp; groups are then of 16 outputs and quads of 8 inputs.
    tensor_tiles: int = 0

    @property
    def chunk(self) -> int:
        """Rows that can be multiplied at once."""
        return TENSOR_CHUNK if self.tensor_tiles else CHUNK

    @property
    def width(self) -> int:
        """Numbers of a row's partial sums."""
        return (16 if self.tensor_tiles else 4) * self.groups

    @property
    def kept(self) -> int:
        """Weights that a thread has in registers."""
        return self.in_registers * (4 * self.tensor_tiles or 16)

    @property
    def shared_weights(self) -> int:
        """Weights of a thread in shared memory."""
        return 16 * self.in_shared

    @property
    def threads(self) -> int:
        """Threads that the tiling needs."""
        if self.tensor_tiles:
            return -(-self.groups // self.tensor_tiles) * self.parts * 32
        return -(-min(self.groups, THREADS) * self.parts // 32) * 32

    @property
    def stride(self) -> int:
        """Numbers of a row in shared memory."""
        return 8 * self.parts * self.quads + 4 if self.tensor_tiles else 4 * self.parts * self.quads

    @property
    def partials(self) -> int:
        """Numbers of a chunk's partial sums."""
        return self.chunk * self.parts * self.width

    def cycles(self, rows: int, ffma_cycles: int, l2_bytes: float) -> float:
        """Estimated time of multiplying a group of ``rows`` and adding up the partial sums.

        ``l2_bytes`` come from the second-level cache in a cycle, at most.
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
    """A thread for each group and part, so that registers hold the weights if it can be."""
    groups, quads = -(-outputs // 4), -(-inputs // 4)
    if groups > THREADS:  # a thread takes several groups in turn and keeps no weights
        return Tiling(inputs, outputs, groups, 1, quads, 0, 0)
    parts = min(THREADS // groups, -(-quads // max(registers, 1)))
    return Tiling(inputs, outputs, groups, parts, max(-(-quads // parts), registers), registers, 0)


@lru_cache(maxsize=1024)
def tensor_tilings(inputs: int, outputs: int) -> list[Tiling]:
    """Tilings that keep all weights in the registers of a block's warps."""
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
    """Estimated time of a step of a cluster, of those that have ``all_rows``.

    ``received`` bytes come to a block for each row and step; a group takes ``fixed`` cycles besides.
    """
    clusters = min(-(-all_rows // rows), device.at_once(cluster_size))
    l2_bytes = device.l2_bytes(clusters * cluster_size)
    busy = fixed + sum(tiling.cycles(at_once, device.ffma_cycles, l2_bytes) for tiling in tilings)
    network = 0.0 if cluster_size == 1 else received * at_once / NETWORK
    exchange = _BARRIER if cluster_size == 1 else EXCHANGE + network
    groups = -(-rows // at_once)
    # Only the time that a group's numbers travel is hidden by other groups' work, and all share the network.
    return max(groups * busy, busy + exchange, groups * network)
