"""Cuts of combiner_scan for tensor cores: eight rows at once, all weights in registers.

``csrc/cuda/combiner_tensor.cuh`` has the kernels. A step of a group has two halves, each with an exchange:
the owners of latents give them to all blocks, and all blocks give partial sums to the owners.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import NETWORK, TENSOR, THREADS

ROWS = 8  # of a group, at most: the columns of a tile
WARPS = THREADS // 32
MOST_SLICE = THREADS // ROWS  # latents of a block: a thread has one of a row
_TENSOR_CORES = 4

# Cycles from a store to another block's memory until it is seen there, by measurements of the exchange of
# other kernels on an NVIDIA H100 80GB HBM3 at 1980 MHz, besides the time that its bytes take.
_EXCHANGE = 500.0
# Cycles of the two halves of a group's step besides the products, forward and backward: those of a warp along
# the machine code for 9.0. A block waits for its warps at every step, so that they do not hide them.
_LATENTS, _UNITS = (670.0, 960.0), (700.0, 800.0)


class TensorTiling(NamedTuple):
    """The way a block multiplies rows by its parts of both matrices.

    ``csrc/cuda/tensor_tile.h`` has the same fields, for each matrix.
    """

    inputs: int  # of the units
    units: int  # of a block, at most
    unit_tiles: int  # of 16 units, of a warp
    input_steps: int  # of eight inputs
    outputs: int
    output_tiles: int  # of 16 outputs, of a warp
    unit_steps: int  # of eight units

    @property
    def latents(self) -> int:
        """Latents of a row: Z."""
        return min(self.inputs, self.outputs)

    def share(self, cluster_size: int) -> int:
        """Latents that a block of a cluster owns: a multiple of four, so that four go in one store."""
        each = -(-self.latents // cluster_size)
        return -(-each // 4) * 4

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def kept(self) -> int:
        """Weights that a thread has in registers: all of them."""
        return 4 * (self.unit_tiles * self.input_steps + self.output_tiles * self.unit_steps)

    @property
    def quads(self) -> int:
        """Quads of weights of a thread."""
        return self.kept // 4

    @property
    def in_registers(self) -> int:
        """Quads of weights that are in registers: all of them."""
        return self.quads

    @property
    def in_shared(self) -> int:
        """Quads of weights that are in shared memory: none."""
        return 0

    @property
    def shared_weights(self) -> int:
        """Weights of a thread in shared memory: none."""
        return 0

    @property
    def tensor_tiles(self) -> int:
        """Tiles of 16 outputs that a warp has."""
        return self.unit_tiles + self.output_tiles

    @property
    def fits(self) -> bool:
        """Whether it has all inputs and outputs."""
        return (
            self.inputs <= 8 * self.input_steps
            and self.units <= min(16 * WARPS * self.unit_tiles, 8 * self.unit_steps)
            and self.outputs <= 16 * WARPS * self.output_tiles
        )


class Cut(NamedTuple):
    """A plan of so many rows of a cluster, some of them at once."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: TensorTiling
    shared_bytes: int
    backward: bool

    @property
    def products(self) -> tuple[int, int]:
        """Products of 16 x 8 by 8 x 8 in a group's step on the busiest tensor core: of units, of outputs."""
        units, outputs = -(-self.tiling.units // 16), -(-self.tiling.outputs // 16)
        return (
            -(-units // _TENSOR_CORES) * self.tiling.input_steps,
            -(-outputs // _TENSOR_CORES) * self.tiling.unit_steps,
        )

    @property
    def received(self) -> tuple[int, int]:
        """Bytes of a group's step that come to a block from the others: latents and sums."""
        made, sums = (2, 1) if self.backward else (1, 2)
        others = self.cluster_size - 1
        pairs = -(-self.at_once // 2)  # of rows, which go in one store
        share = self.tiling.share(self.cluster_size)
        latents = 4 * self.at_once * made * (self.tiling.latents - share)
        return max(latents, 0), 4 * 2 * pairs * sums * share * others

    @property
    def cycles(self) -> float:
        """Estimated time of a step of a cluster."""
        groups = -(-self.rows // self.at_once)
        units = _UNITS[self.backward] + TENSOR * sum(self.products)
        latents = _LATENTS[self.backward]
        network = sum(self.received) / NETWORK
        chain = latents + units + 2 * _EXCHANGE + network
        # Of two groups both make latents and then both units, so that a half's exchange has the other's work.
        if groups == 2:
            chain += units - latents
        return max(chain, groups * (latents + units), groups * network)


def cuts(units: int, latents: int, backward: bool, most_rows: int) -> Iterator[Cut]:
    """All for these sizes and at most so many rows of a cluster."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    kind = "combiner_tensor_backward" if backward else "combiner_tensor"
    scan = "combiner_scan_backward" if backward else "combiner_scan"
    for size, unit_tiles, input_steps, output_tiles, unit_steps in kernels(kind):
        own = -(-units // size)
        tiling = TensorTiling(inputs, own, unit_tiles, input_steps, outputs, output_tiles, unit_steps)
        if not tiling.fits or latents > size * MOST_SLICE:
            continue
        for rows in range(1, most_rows + 1):
            at_once = -(-rows // -(-rows // ROWS))  # groups of the same size, or nearly
            used = shared_bytes(scan, [rows, at_once, size, *tiling], latents)
            yield Cut(rows, at_once, size, tiling, used, backward)
