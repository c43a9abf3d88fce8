"""Plans of combiner_scan for tensor cores: up to eight rows at once, all weights in registers.

``csrc/cuda/combiner_tensor.cuh`` has the kernels. A step of a group has two halves, each with an exchange:
first the owners of latents broadcast them to all blocks (an all-gather), then all blocks send partial sums to
the owners (a reduce-scatter).
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import NETWORK, TENSOR, THREADS

ROWS = 8  # maximum rows of a group: the columns of a tile
WARPS = THREADS // 32
MOST_SLICE = THREADS // ROWS  # maximum latents of a block, with one latent of a row per thread
_TENSOR_CORES = 4

# Cycles from a store to another block's memory until it is visible there, without the transfer time of its
# bytes: from measurements of the exchange of other kernels on an NVIDIA H100 80GB HBM3 at 1980 MHz.
_EXCHANGE = 500.0
# Cycles of the two halves of a group's step without the matrix products, forward and backward: those of a
# warp, from the machine code for 9.0. A block waits for all its warps at every step, so they are not hidden.
_LATENTS, _UNITS = (670.0, 960.0), (700.0, 800.0)


class TensorTiling(NamedTuple):
    """The tiling of a block's products of rows with its slices of both matrices.

    ``csrc/cuda/tensor_tile.h`` has the same fields, for each matrix.
    """

    inputs: int  # number of inputs of the units
    units: int  # maximum units of a block
    unit_tiles: int  # tiles of 16 units per warp
    input_steps: int  # steps of eight inputs
    outputs: int
    output_tiles: int  # tiles of 16 outputs per warp
    unit_steps: int  # steps of eight units

    @property
    def latents(self) -> int:
        """The number of latents of a row, Z."""
        return min(self.inputs, self.outputs)

    def share(self, cluster_size: int) -> int:
        """Latents owned by a block of a cluster: a multiple of four, so that one store has four of them."""
        each = -(-self.latents // cluster_size)
        return -(-each // 4) * 4

    @property
    def threads(self) -> int:
        """The number of threads of a block."""
        return THREADS

    @property
    def kept(self) -> int:
        """Weights per thread in registers: all of them."""
        return 4 * (self.unit_tiles * self.input_steps + self.output_tiles * self.unit_steps)

    @property
    def quads(self) -> int:
        """Quads of four weights per thread."""
        return self.kept // 4

    @property
    def in_registers(self) -> int:
        """Quads of weights in registers: all of them."""
        return self.quads

    @property
    def in_shared(self) -> int:
        """Quads of weights in shared memory: none."""
        return 0

    @property
    def shared_weights(self) -> int:
        """Weights per thread in shared memory: none."""
        return 0

    @property
    def tensor_tiles(self) -> int:
        """Tiles of 16 outputs per warp."""
        return self.unit_tiles + self.output_tiles

    @property
    def fits(self) -> bool:
        """True if the tiling covers all inputs and outputs."""
        return (
            self.inputs <= 8 * self.input_steps
            and self.units <= min(16 * WARPS * self.unit_tiles, 8 * self.unit_steps)
            and self.outputs <= 16 * WARPS * self.output_tiles
        )


class Cut(NamedTuple):
    """A distribution of the work, with the number of rows per cluster and of rows multiplied at once."""

    rows: int
    at_once: int
    cluster_size: int
    tiling: TensorTiling
    shared_bytes: int
    backward: bool

    @property
    def products(self) -> tuple[int, int]:
        """The m16n8k8 products in a group's step on the busiest tensor core, for units and for outputs."""
        units, outputs = -(-self.tiling.units // 16), -(-self.tiling.outputs // 16)
        return (
            -(-units // _TENSOR_CORES) * self.tiling.input_steps,
            -(-outputs // _TENSOR_CORES) * self.tiling.unit_steps,
        )

    @property
    def received(self) -> tuple[int, int]:
        """Bytes that a block receives from the others in a group's step: latents and sums."""
        made, sums = (2, 1) if self.backward else (1, 2)
        others = self.cluster_size - 1
        pairs = -(-self.at_once // 2)  # pairs of rows, which share a store
        share = self.tiling.share(self.cluster_size)
        latents = 4 * self.at_once * made * (self.tiling.latents - share)
        return max(latents, 0), 4 * 2 * pairs * sums * share * others

    @property
    def cycles(self) -> float:
        """Estimated cycles of a step of a cluster."""
        groups = -(-self.rows // self.at_once)
        units = _UNITS[self.backward] + TENSOR * sum(self.products)
        latents = _LATENTS[self.backward]
        network = sum(self.received) / NETWORK
        chain = latents + units + 2 * _EXCHANGE + network
        # Two groups both compute latents and then both compute units, so that the exchange of one group
        # overlaps with the work of the other.
        if groups == 2:
            chain += units - latents
        return max(chain, groups * (latents + units), groups * network)


def cuts(units: int, latents: int, backward: bool, most_rows: int) -> Iterator[Cut]:
    """All plans for these sizes with at most ``most_rows`` rows per cluster."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    kind = "combiner_tensor_backward" if backward else "combiner_tensor"
    scan = "combiner_scan_backward" if backward else "combiner_scan"
    for size, unit_tiles, input_steps, output_tiles, unit_steps in kernels(kind):
        own = -(-units // size)
        tiling = TensorTiling(inputs, own, unit_tiles, input_steps, outputs, output_tiles, unit_steps)
        if not tiling.fits or latents > size * MOST_SLICE:
            continue
        for rows in range(1, most_rows + 1):
            at_once = -(-rows // -(-rows // ROWS))  # groups of equal size, or nearly
            used = shared_bytes(scan, [rows, at_once, size, *tiling], latents)
            yield Cut(rows, at_once, size, tiling, used, backward)
