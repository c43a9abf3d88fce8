"""Cuts of combiner_scan for the kernels that take one row at a time, all weights in registers.

Eight lanes of a warp share the inputs of some outputs; a block has 32 such groups. The sizes of a tile are
compiled into a kernel, so a plan takes one of those that there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels

THREADS = 256  # of a block
PARTS = 8  # lanes next to one another, which share all inputs of some outputs
GROUPS = THREADS // PARTS

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
    def shared_weights(self) -> int:
        """Weights of a thread in shared memory: none."""
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
    def fits(self) -> bool:
        """Whether it has all inputs and outputs."""
        return self.inputs <= PARTS * self.lane_inputs and self.outputs <= GROUPS * self.group_outputs

    def cycles(self, rows: int) -> float:
        """Estimated time of multiplying: two warps take turns, a multiplication of a warp a cycle."""
        return 2.0 * self.kept * rows


def cuts(units: int, latents: int, backward: bool) -> Iterator[tuple[int, LaneTile, LaneTile]]:
    """The kernels for these sizes: blocks of a cluster, tiles of the units and of what comes of them."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    kind = "combiner_rows_backward" if backward else "combiner_rows"
    for size, unit_outputs, unit_inputs, sum_outputs, sum_inputs in kernels(kind):
        own = -(-units // size)
        to = LaneTile(inputs, own, unit_inputs, unit_outputs)
        back = LaneTile(own, outputs, sum_inputs, sum_outputs)
        if to.fits and back.fits:
            yield size, to, back
