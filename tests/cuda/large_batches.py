"""Bounds of scans of large batches on tensor cores: by their products, or by the bytes that blocks exchange.

    python -m tests.cuda.step_budget --large

A cluster keeps all weights on the chip, and its blocks exchange at every step, so that both products and
bytes grow with its rows. A row of the table is for a kind of kernel and a cluster size. It has the rows of
each of the concurrent clusters, the products and received bytes of a block per step, and the share of the
tensor cores' peak that the longer of the two allows if they overlap fully. The last share assumes no overlap
of the exchange's latency, and the rate of ``mma.sync``, of which a tensor core executes one in seven cycles
instead of one in four at its peak.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dmm_fast.cuda.devices import CLUSTER_SIZES, H100, Device
from dmm_fast.cuda.plan import combiner_plan, rnn_plan
from dmm_fast.cuda.tilings import EXCHANGE, NETWORK, tensor_tilings

B, H, Z = 512, 600, 100
TENSOR_ROWS = 8  # of a product; the weights' tile has 16 outputs
TF32_PEAK = 1024  # multiply-adds a cycle and multiprocessor: 495 TFLOPS of an H100 SXM, without sparsity
SYNC_RATE = 4 / 7
REGISTER_BYTES = 120 * 256 * 4  # of weights, in a block of 256 threads
SHARED_BYTES = 128 * 1024  # of weights, beside states and sums


class Product(NamedTuple):
    """A matrix of the scan, whose outputs or inputs are split over the blocks."""

    inputs: int
    outputs: int
    shares_outputs: bool

    def of_block(self, blocks: int) -> tuple[int, int]:
        """Inputs and outputs of the part of a block."""
        if self.shares_outputs:
            return self.inputs, -(-self.outputs // blocks)
        return -(-self.inputs // blocks), self.outputs


class Kind(NamedTuple):
    """A kind of kernel."""

    name: str
    products: tuple[Product, ...]
    number_bytes: int  # of a weight
    depth: int  # inputs of an MMA
    received: Callable[[int], float]  # bytes, by a block for a row and step, of so many blocks

    def weight_bytes(self, blocks: int) -> int:
        """Bytes of a block's weights."""
        parts = (product.of_block(blocks) for product in self.products)
        return sum(self.number_bytes * inputs * outputs for inputs, outputs in parts)

    def mmas(self, blocks: int, rows: int) -> int:
        """The MMAs of a block in a step, of 16 outputs by some inputs by 8 rows."""
        tiles = 0
        for product in self.products:
            inputs, outputs = product.of_block(blocks)
            tiles += -(-outputs // 16) * -(-inputs // self.depth)
        return tiles * -(-rows // TENSOR_ROWS)

    @property
    def mma_cycles(self) -> float:
        """Cycles of a multiprocessor for an MMA at its peak; bfloat16 has twice the rate of tf32."""
        return 16 * self.depth * TENSOR_ROWS / (TF32_PEAK * 4 / self.number_bytes)


_RNN = (Product(H, H, shares_outputs=True),)
_COMBINER = (Product(Z, H, shares_outputs=True), Product(H, 2 * Z, shares_outputs=False))


def _gathered(number_bytes: int) -> Callable[[int], float]:
    """All-gather of the state: a block receives the parts of all others."""
    return lambda blocks: number_bytes * H * (blocks - 1) / blocks


def _all_sums(blocks: int) -> float:
    """All-to-all: every block receives the partial sums of every block."""
    return 4 * 2 * Z * (blocks - 1)


def _scattered(blocks: int) -> float:
    """Reduce-scatter of the partial sums and all-gather of the latents, a part of each from every block."""
    return 4 * (2 * Z + Z) * (blocks - 1) / blocks


KINDS = (
    Kind("rnn_scan, tf32", _RNN, 4, 8, _gathered(4)),
    Kind("rnn_scan, bf16", _RNN, 2, 16, _gathered(4)),
    Kind("rnn_scan, bf16, state in bf16", _RNN, 2, 16, _gathered(2)),
    Kind("combiner_scan, tf32, all-to-all", _COMBINER, 4, 8, _all_sums),
    Kind("combiner_scan, tf32, reduce-scatter", _COMBINER, 4, 8, _scattered),
)


class Bound(NamedTuple):
    """A kind of kernel in clusters of some size."""

    kind: Kind
    blocks: int
    rows: int  # of a cluster
    mmas: int  # of a block in a step
    received: float  # bytes, by a block in a step
    useful: float  # cycles for the multiply-adds of the step on all multiprocessors at their peak

    @property
    def tensor(self) -> float:
        """Cycles of a block's MMAs at the peak."""
        return self.mmas * self.kind.mma_cycles

    @property
    def network(self) -> float:
        """Cycles in which the received bytes arrive."""
        return self.received / NETWORK

    @property
    def share(self) -> float:
        """The share of the peak that the longer of both allows."""
        return self.useful / max(self.tensor, self.network)

    @property
    def reachable(self) -> float:
        """The share at the rate of ``mma.sync``, with a latency at every step."""
        latency = EXCHANGE if self.blocks > 1 else 0
        return self.useful / (max(self.tensor / SYNC_RATE, self.network) + latency)

    @property
    def keeps(self) -> str:
        """The memory that holds the weights of a block."""
        needed = self.kind.weight_bytes(self.blocks)
        if needed <= REGISTER_BYTES:
            return "registers"
        return "and shared" if needed <= REGISTER_BYTES + SHARED_BYTES else "no room"


def bounds(device: Device = H100, batch: int = B) -> Iterator[Bound]:
    """Every kind and cluster size."""
    for kind in KINDS:
        for blocks in CLUSTER_SIZES:
            if clusters := device.at_once(blocks):
                rows = -(-batch // clusters)
                macs = batch * sum(product.inputs * product.outputs for product in kind.products)
                per_cycle = TF32_PEAK * 4 / kind.number_bytes * device.multiprocessors
                received = rows * kind.received(blocks)
                yield Bound(kind, blocks, rows, kind.mmas(blocks, rows), received, macs / per_cycle)


def existing_mmas(blocks: int, rows: int) -> list[int]:
    """The same count for the existing kernels of rnn_scan, one for each tiling."""
    return [
        tiling.threads // 32 * tiling.quads * tiling.tensor_tiles * -(-rows // TENSOR_ROWS)
        for tiling in tensor_tilings(H, -(-H // blocks))
    ]


def print_plans() -> None:
    """A row for each plan that the planner chooses: its estimate, and the share of tf32's peak."""
    chosen = {
        "rnn_scan, tf32": [rnn_plan(B, H, H100, backward, tf32=True) for backward in (False, True)],
        "rnn_scan, bf16": [
            rnn_plan(B, H, H100, backward, tf32=True, bf16=True) for backward in (False, True)
        ],
        "combiner_scan, tf32": [
            combiner_plan(B, H, Z, H100, backward, tf32=True) for backward in (False, True)
        ],
    }
    peak = {"rnn": B * H * H, "combiner": B * 3 * H * Z}
    for name, plans in chosen.items():
        useful = peak[name.partition("_")[0]] / (TF32_PEAK * H100.multiprocessors)
        for way, plan in zip(("forward", "backward"), plans, strict=True):
            print(
                f"the plan of {name}, {way}: {plan.clusters} clusters of {plan.cluster_size} blocks, "
                f"{plan.rows_per_cluster} rows, {plan.rows_per_group} at once: "
                f"{plan.step_cycles:.0f} cycles, {useful / plan.step_cycles:.0%} of tf32's peak"
            )


def print_table() -> None:
    """A row for each kind and cluster size."""
    print(f"B = {B}, H = {H}, Z = {Z} on an {H100.name}; cycles of a step at {H100.clock} GHz")
    print(
        f"{'kind':36}{'blocks':>7}{'rows':>6}{'weights':>12}{'MMAs':>7}{'cycles':>8}{'bytes':>9}{'cycles':>8}"
        f"{'binds':>9}{'share':>7}{'reachable':>11}"
    )
    for each in bounds():
        binds = "tensor" if each.tensor >= each.network else "exchange"
        print(
            f"{each.kind.name:36}{each.blocks:7}{each.rows:6}{each.keeps:>12}{each.mmas:7}{each.tensor:8.0f}"
            f"{each.received:9.0f}{each.network:8.0f}{binds:>9}{each.share:7.0%}{each.reachable:11.0%}"
        )
    print_plans()
    for blocks in CLUSTER_SIZES:
        rows = -(-B // H100.at_once(blocks))
        if mmas := existing_mmas(blocks, rows):
            print(
                f"rnn_scan's kernels in tf32, {blocks} blocks, {rows} rows: {', '.join(map(str, mmas))} MMAs"
            )
