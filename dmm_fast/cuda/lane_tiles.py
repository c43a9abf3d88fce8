"""Cuts of combiner_scan for the kernels that take one row or two at a time, all weights in registers.

Eight lanes of a warp share the inputs of some outputs; a block has 32 such groups. The sizes of a tile are
compiled into a kernel, so a plan takes one of those that there are.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels
from dmm_fast.cuda.tilings import NETWORK, THREADS

PARTS = 8  # lanes next to one another, which share all inputs of some outputs
GROUPS = THREADS // PARTS

# Cycles of a group's step, forward and backward, besides its instructions and the bytes that come to a block:
# what the two warps of a scheduler cannot hide from each other, and the exchange. On an NVIDIA H100 80GB HBM3
# at 1980 MHz it was so much, whether other groups had work or not (B = 20, H = 600, Z = 100).
_LATENCY = (540.0, 810.0)
_ALONE = 300.0  # where a block has no other to exchange with
# Instructions of a warp for a group's step besides its multiplications, and for a second row.
_OTHERS, _ROW = (286, 331), 52


class LaneTile(NamedTuple):
    """The way a block multiplies a row by its part of a matrix; ``csrc/cuda/lane_tile.h`` has the fields."""

    inputs: int
    outputs: int
    lane_inputs: int
    group_outputs: int

    @property
    def chunk(self) -> int:
        """Rows that can be multiplied at once, at most."""
        return 2

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
    def fits(self) -> bool:
        """Whether it has all inputs and outputs."""
        return self.inputs <= PARTS * self.lane_inputs and self.outputs <= GROUPS * self.group_outputs


class Cut(NamedTuple):
    """A kernel: blocks of a cluster, rows of a group, tiles of a block's units and of what comes of them."""

    cluster_size: int
    rows: int
    to_units: LaneTile
    from_units: LaneTile
    backward: bool

    @property
    def instructions(self) -> int:
        """Instructions of a warp in a step of a group, within 5% of the machine code for 9.0."""
        multiplications = self.rows * (self.to_units.kept + self.from_units.kept)
        return multiplications + _OTHERS[self.backward] + _ROW * (self.rows - 1)

    @property
    def cycles(self) -> float:
        """Estimated time of a step of a group."""
        if self.cluster_size == 1:
            return 2.0 * self.instructions + _ALONE
        received = 4 * self.rows * self.from_units.outputs * self.cluster_size
        return 2.0 * self.instructions + _LATENCY[self.backward] + received / NETWORK


def cuts(units: int, latents: int, backward: bool) -> Iterator[Cut]:
    """The kernels for these sizes."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    kind = "combiner_rows_backward" if backward else "combiner_rows"
    for size, unit_outputs, unit_inputs, sum_outputs, sum_inputs, rows in kernels(kind):
        own = -(-units // size)
        to = LaneTile(inputs, own, unit_inputs, unit_outputs)
        back = LaneTile(own, outputs, sum_inputs, sum_outputs)
        if to.fits and back.fits:
            yield Cut(size, rows, to, back, backward)
