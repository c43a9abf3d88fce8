"""Plans of ``rnn_scan`` in which each output belongs to a warp, whose lanes split the inputs among them.

``csrc/cuda/rnn_scan_warps.cuh`` has the kernels. Each exists for clusters of blocks, and for teams that
exchange through device memory.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from dmm_fast.cuda.devices import Device
from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import EXCHANGE, NETWORK
from dmm_fast.cuda.word_exchange import poll_cycles, read_cycles, travel_cycles, word_bytes

CHUNK = 128  # inputs of a chunk, four per lane
WARPS = 8  # warps per block, two on each of the four schedulers
MOST_GROUPS = 8

# Cycles of a group's step besides its instructions: the latency that the warps of a scheduler cannot hide
# from each other, and the time from a store to another block's memory until it is visible there. Measured on
# an H100 80GB HBM3 at 1980 MHz with kernels of ten warps per block (B = 20, H = 600), with and without work
# of other groups.
_LATENCY = 500.0
_ALONE = 150.0  # the same for a single block, without an exchange


class WarpTiling(NamedTuple):
    """Assignment of outputs to the warps of a block; ``csrc/cuda/warp_tile.h`` has the same fields."""

    chunks: int  # chunks of inputs
    outputs: int  # outputs per warp
    in_registers: int  # chunks with weights in registers

    @property
    def threads(self) -> int:
        """The number of threads of a block."""
        return 32 * WARPS

    @property
    def block_outputs(self) -> int:
        """The number of outputs of a block."""
        return WARPS * self.outputs

    @property
    def quads(self) -> int:
        """Quads of four inputs per lane for each output."""
        return self.chunks

    @property
    def in_shared(self) -> int:
        """Quads of each output with weights in shared memory."""
        return self.chunks - self.in_registers

    @property
    def tensor_tiles(self) -> int:
        """Tiles on tensor cores: none."""
        return 0

    @property
    def kept(self) -> int:
        """Weights per thread in registers."""
        return 4 * self.outputs * self.in_registers

    @property
    def shared_weights(self) -> int:
        """Weights per thread in shared memory."""
        return 4 * self.outputs * self.in_shared

    def multiplications(self, rows: int) -> int:
        """FFMA instructions of a warp in a step of a group."""
        return 4 * rows * self.outputs * self.chunks

    def sums(self, rows: int) -> int:
        """Instructions of a warp in a step of a group up to the reduced sums."""
        loads = self.chunks * rows
        loads += self.in_shared * (self.outputs + 13)  # of weights, in a loop
        additions, left = 0, rows * self.outputs
        for _ in range(5):  # a shuffle, an addition and, while lanes still reduce two sums, two selections
            half = (left + 1) // 2
            additions += 2 * half + 2 * (left - half)
            left = half
        return self.multiplications(rows) + loads + additions

    def instructions(self, rows: int, several: bool = False) -> int:
        """Instructions of a warp in a step of a group of a cluster, within 6% of the machine code for 9.0."""
        stores = 20 * -(-rows * self.block_outputs // 128)
        return self.sums(rows) + stores + 100 + 67 * several

    def word_instructions(self, rows: int, several: bool = False) -> int:
        """Instructions of a warp in a step of a group of a team, within 8% of the machine code for 9.0."""
        words = -(-(CHUNK * self.chunks - self.block_outputs) // self.threads)  # words per thread
        polls = min(words, 4) * (8 + 2 * rows) + 4 * max(words - 4, 0)  # at most four are polled together
        return self.sums(rows) + 125 + 3 * rows + polls + 80 * several


class Cut(NamedTuple):
    """A distribution of the work, with the estimated ``cycles`` of a step of one cluster."""

    rows: int
    at_once: int
    blocks: int  # blocks per cluster or team
    tiling: WarpTiling
    shared_bytes: int
    cycles: float


def warp_cuts(units: int, backward: bool, most_rows: int, device: Device) -> Iterator[Cut]:
    """All plans for ``units`` units with at most ``most_rows`` rows per cluster."""
    scan = _scan(backward)
    for tiling, size, rows, several in _tilings("rnn_scan_warps", units):
        if size > 16 or not device.at_once(size):
            continue
        # A single block needs only one chunk, and without cluster support kernels with more are empty.
        if size == 1 and tiling.chunks > 1:
            continue
        latency = _LATENCY if size > 1 else _ALONE
        instructions = tiling.instructions(rows, several)
        busy = _issue(instructions, tiling.multiplications(rows), device) + latency
        received = 4 * rows * tiling.block_outputs * (size - 1)
        for count in _counts(rows, several, most_rows):
            used = shared_bytes(scan, [count, rows, size, *tiling])
            # The transfer of one group overlaps with the computation of the others.
            cycles = max(-(-count // rows) * busy, busy + received / NETWORK)
            yield Cut(count, rows, size, tiling, used, cycles)


def _issue(instructions: int, multiplications: int, device: Device) -> float:
    """Estimated issue cycles of a group's step for the two warps of a scheduler."""
    return 2.0 * (instructions + multiplications * (device.ffma_cycles - 1))


def word_cuts(units: int, backward: bool, most_rows: int, device: Device, all_rows: int) -> Iterator[Cut]:
    """Plans for teams of at most ``most_rows`` of ``all_rows`` rows, which exchange through device memory."""
    scan = _scan(backward)
    for tiling, size, rows, several in _tilings("rnn_scan_words", units):
        if size == 1 or not device.teams_at_once(size):
            continue
        received = word_bytes(rows) * tiling.block_outputs * (size - 1)
        # A group may be incomplete, since not every kernel has a version for a single row.
        counts = _counts(rows, several, most_rows) if several else (min(rows, most_rows),)
        for count in counts:
            used = shared_bytes(scan, [count, rows, size, *tiling, 1])
            teams = min(-(-all_rows // count), device.teams_at_once(size))
            instructions = tiling.word_instructions(rows, several)
            busy = _issue(instructions, tiling.multiplications(rows), device) + _LATENCY - EXCHANGE
            busy += poll_cycles(device) + read_cycles(device, received, teams * size)
            cycles = max(-(-count // rows) * busy, busy + travel_cycles(device))
            yield Cut(count, rows, size, tiling, used, cycles)


def _scan(backward: bool) -> str:
    return "rnn_scan_backward" if backward else "rnn_scan"


def _tilings(kind: str, units: int) -> Iterator[tuple[WarpTiling, int, int, bool]]:
    """The kernels for ``units`` units: tiling, blocks, rows per group, and a flag for several groups."""
    for chunks, outputs, in_registers, rows, several in kernels(kind):
        tiling = WarpTiling(chunks, outputs, in_registers)
        size = -(-units // tiling.block_outputs)
        if size * tiling.block_outputs <= CHUNK * chunks:
            yield tiling, size, rows, bool(several)


def _counts(rows: int, several: bool, most_rows: int) -> Iterator[int]:
    """Candidate rows per cluster for a kernel with ``rows`` rows per group."""
    of_cluster = range(rows + 1, MOST_GROUPS * rows + 1) if several else (rows,)
    return takewhile(lambda count: count <= most_rows, of_cluster)
