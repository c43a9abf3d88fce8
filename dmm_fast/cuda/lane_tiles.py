"""Cuts of combiner_scan for the kernels that take one row at a time, all weights in registers.

Eight lanes of a warp share the inputs of some outputs; a block has 32 such groups. The sizes of a tile are
compiled into a kernel, so a plan takes one of those that there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

THREADS = 256  # of a block
PARTS = 8  # lanes next to one another, which share all inputs of some outputs
GROUPS = THREADS // PARTS
MOST_ROWS = 32  # of a cluster
# Of shared memory: a row with its two barriers, and where threads put what is nobody's.
ROW_BYTES, SPARE_BYTES = 32, 16

# Of each kernel: blocks of a cluster, then for the block's units and for what comes of them the outputs of a
# group and the inputs of a lane. csrc/cuda/combiner_rows_kernels.cuh has the same lists.
FORWARD = ((5, 4, 13, 8, 15), (6, 4, 13, 8, 13), (8, 4, 13, 8, 10), (8, 4, 16, 8, 16))
BACKWARD = ((5, 4, 25, 4, 15), (6, 4, 25, 4, 13), (8, 4, 25, 4, 10), (8, 4, 32, 4, 16))

# Cycles that a row takes at every step, forward and backward, besides its multiplications and the exchange:
# fitted to what one row in clusters of 5 took on an NVIDIA H100 80GB HBM3 at 1980 MHz (B = 20, H = 600,
# Z = 100). Along the machine code 550 are counted: 160 for adding up what the blocks gave and softplus, 170
# for the sums of lanes and tanh, 130 for the sums of lanes and the stores, 90 for two barriers.
ROW_CYCLES = (760, 1_160)


class LaneTile(NamedTuple):
    """The way a block multiplies a row by its part of a matrix; ``csrc/cuda/lane_tile.h`` has the fields."""

    inputs: int
    outputs: int
    lane_inputs: int
    group_outputs: int

    @property
    def chunk(self) -> int:
        """Rows that can be multiplied at once."""
        return 1

    @property
    def threads(self) -> int:
        """That the tile needs."""
        return THREADS

    @property
    def kept(self) -> int:
        """Weights that a thread has in registers: all of them."""
        return self.lane_inputs * self.group_outputs

    @property
    def quads(self) -> int:
        """Loads of four inputs that a lane multiplies."""
        return -(-self.lane_inputs // 4)

    @property
    def in_registers(self) -> int:
        """Quads whose weights are in registers: all of them."""
        return self.quads

    @property
    def in_shared(self) -> int:
        """Quads whose weights are in shared memory: none."""
        return 0

    @property
    def tensor_tiles(self) -> int:
        """On tensor cores: none."""
        return 0

    @property
    def per_warp(self) -> int:
        """Outputs that belong to a warp: none, they belong to groups of lanes."""
        return 0

    @property
    def vector(self) -> int:
        """Numbers of what is multiplied, in shared memory."""
        return PARTS * 4 * (self.quads | 1)

    @property
    def width(self) -> int:
        """Numbers that a block gives, with those that nobody reads."""
        return GROUPS * self.group_outputs

    @property
    def fits(self) -> bool:
        """Whether it has all inputs and outputs."""
        return self.inputs <= PARTS * self.lane_inputs and self.outputs <= GROUPS * self.group_outputs

    def cycles(self, rows: int) -> float:
        """Estimated time of multiplying: two warps take turns, a multiplication of a warp a cycle."""
        return 2.0 * self.kept * rows


class Cut(NamedTuple):
    """A kernel's blocks of a cluster, and its tiles of the block's units and of what comes of them."""

    cluster_size: int
    tiles: tuple[LaneTile, LaneTile]
    operands: int  # numbers of each thread that come from device memory at a step

    def shared_bytes(self, rows: int) -> int:
        """Bytes of a block: latents, units, barriers, rows, inboxes, two steps of operands, their sources."""
        to, back = self.tiles
        of_a_row = 2 * self.cluster_size * back.width + 4 * self.operands * THREADS
        return ROW_BYTES * MOST_ROWS + SPARE_BYTES + 4 * (to.vector + back.vector + rows * of_a_row)


def cuts(units: int, latents: int, backward: bool) -> Iterator[Cut]:
    """The kernels that take H = ``units`` and Z = ``latents``."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    for size, unit_outputs, unit_inputs, sum_outputs, sum_inputs in BACKWARD if backward else FORWARD:
        own = -(-units // size)
        to = LaneTile(inputs, own, unit_inputs, unit_outputs)
        back = LaneTile(own, outputs, sum_inputs, sum_outputs)
        if to.fits and back.fits:
            yield Cut(size, (to, back), 6 if backward else 3)
