"""Plans of combiner_scan for the kernels that process one or two rows at a time, all weights in registers.

Eight lanes of a warp split the inputs of some outputs among them; a block has 32 such groups of lanes. The
sizes of a tile are template arguments of a kernel, so a plan uses one of the instantiated tiles. Each is
compiled for clusters of some sizes, and for teams of any size that exchange through device memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dmm_fast.cuda.devices import Device
from dmm_fast.cuda.scan_kernels import kernels
from dmm_fast.cuda.tilings import EXCHANGE, NETWORK, THREADS
from dmm_fast.cuda.word_exchange import poll_cycles, read_cycles, travel_cycles

PARTS = 8  # adjacent lanes that split the inputs of some outputs among them
GROUPS = THREADS // PARTS

# Cycles of a group's step, forward and backward, besides its instructions and the transfer of bytes:
# the latency that the two warps of a scheduler cannot hide from each other, and that of the exchange.
# Measured on an NVIDIA H100 80GB HBM3 at 1980 MHz, with and without work of other groups (B = 20, H = 600,
# Z = 100).
_LATENCY = (540.0, 810.0)
_ALONE = 300.0  # the same for a single block, without an exchange
# Instructions of a warp for a group's step beside its multiplications, and for a second row.
_OTHERS, _ROW = (286, 331), 52
_SUM_BYTES = 8  # bytes of a sum in device memory, with its share of a flag
_WORDS = 60  # further instructions of a thread that polls for words of other blocks in device memory


class LaneTile(NamedTuple):
    """The tiling of a block's slice of a matrix; ``csrc/cuda/lane_tile.h`` has the same fields."""

    inputs: int
    outputs: int
    lane_inputs: int
    group_outputs: int

    @property
    def chunk(self) -> int:
        """The maximum number of rows multiplied at once."""
        return 2

    @property
    def threads(self) -> int:
        """The number of threads that the tile needs."""
        return THREADS

    @property
    def kept(self) -> int:
        """Weights per thread in registers: all of them."""
        return self.lane_inputs * self.group_outputs

    @property
    def quads(self) -> int:
        """Quads of four inputs per lane."""
        return -(-self.lane_inputs // 4)

    @property
    def in_registers(self) -> int:
        """Quads with weights in registers: all of them."""
        return self.quads

    @property
    def in_shared(self) -> int:
        """Quads with weights in shared memory: none."""
        return 0

    @property
    def shared_weights(self) -> int:
        """Weights per thread in shared memory: none."""
        return 0

    @property
    def tensor_tiles(self) -> int:
        """Tiles on tensor cores: none."""
        return 0

    @property
    def fits(self) -> bool:
        """True if the tile covers all inputs and outputs."""
        return self.inputs <= PARTS * self.lane_inputs and self.outputs <= GROUPS * self.group_outputs


class Cut(NamedTuple):
    """A kernel: blocks per cluster or team, rows per group, and the tiles of a block's units and sums."""

    blocks: int
    rows: int
    to_units: LaneTile
    from_units: LaneTile
    backward: bool

    @property
    def multiplications(self) -> int:
        """FFMA instructions of a warp."""
        return self.rows * (self.to_units.kept + self.from_units.kept)

    @property
    def instructions(self) -> int:
        """Instructions of a warp in a step of a group, within 5% of the machine code for 9.0."""
        return self.multiplications + _OTHERS[self.backward] + _ROW * (self.rows - 1)

    @property
    def word_instructions(self) -> int:
        """Instructions of a warp in a step of a group of a team, within 5% of the machine code for 9.0."""
        return self.instructions + _WORDS

    def _issue(self, instructions: int, device: Device) -> float:
        """Estimated issue cycles of a group's step for the two warps of a scheduler."""
        return 2.0 * (instructions + self.multiplications * (device.ffma_cycles - 1))

    def cycles(self, device: Device) -> float:
        """Estimated cycles of a step of a group of a cluster."""
        if self.blocks == 1:
            return self._issue(self.instructions, device) + _ALONE
        received = 4 * self.rows * self.from_units.outputs * self.blocks
        return self._issue(self.instructions, device) + _LATENCY[self.backward] + received / NETWORK

    def word_cycles(self, device: Device, teams: int, groups: int) -> float:
        """Estimated cycles of a step of a team, of ``teams`` that exchange through device memory."""
        received = self.blocks * self.from_units.outputs * _SUM_BYTES * self.rows
        at_once = 8 if self.backward or self.rows == 1 else 6  # blocks whose words a thread polls together
        polls = -(-self.blocks // at_once)
        busy = self._issue(self.word_instructions, device) + _LATENCY[self.backward] - EXCHANGE
        busy += polls * poll_cycles(device) + read_cycles(device, received, teams * self.blocks)
        return max(groups * busy, busy + travel_cycles(device))


def cuts(units: int, latents: int, backward: bool) -> Iterator[Cut]:
    """The kernels for clusters for these sizes."""
    for size, *sizes, rows in kernels("combiner_rows_backward" if backward else "combiner_rows"):
        to, back = _tiles(units, latents, size, backward, *sizes)
        if to.fits and back.fits:
            yield Cut(size, rows, to, back, backward)


def word_cuts(units: int, latents: int, backward: bool) -> Iterator[Cut]:
    """The kernels for teams for these sizes, each with the fewest blocks, since more blocks exchange more."""
    for *sizes, rows in kernels("combiner_words_backward" if backward else "combiner_words"):
        unit_outputs, _, _, sum_inputs = sizes
        blocks = max(2, -(-units // min(GROUPS * unit_outputs, PARTS * sum_inputs)))
        to, back = _tiles(units, latents, blocks, backward, *sizes)
        if to.fits and back.fits:
            yield Cut(blocks, rows, to, back, backward)


def _tiles(
    units: int,
    latents: int,
    blocks: int,
    backward: bool,
    unit_outputs: int,
    unit_inputs: int,
    sum_outputs: int,
    sum_inputs: int,
) -> tuple[LaneTile, LaneTile]:
    """The tiles of a block's units and of its partial sums."""
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    own = -(-units // blocks)
    return LaneTile(inputs, own, unit_inputs, unit_outputs), LaneTile(own, outputs, sum_inputs, sum_outputs)
