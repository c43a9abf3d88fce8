"""Plans of the scans: pure functions of the sizes and the device.

A cluster of blocks processes some rows of the batch. Each of its blocks keeps a slice of the weights on chip
for the whole scan, and at every step all blocks exchange their results: states in `rnn_scan`, partial sums in
`combiner_scan`. In larger clusters each block has less arithmetic and more data to exchange. The rows of a
cluster are divided into groups that are processed alternately. On a GPU without clusters, or with too small
ones, *teams* of blocks do the same through device memory. The plan is the fastest one measured at these sizes
on this device (:func:`use_measured`), or else the one with the smallest estimated time.

The estimate is in cycles. For the kernels that process a few rows at once (:mod:`.rnn_plans`,
:mod:`.lane_tiles`, :mod:`.combiner_tensor`) it is derived from the instructions of their machine code and the
exchange time measured on an H100; for the general kernels (:mod:`.tilings`) from published throughputs and
the measured time of a group. The estimate of an exchange through device memory uses published latencies
(:mod:`.word_exchange`).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from dmm_fast.check import fail
from dmm_fast.cuda import combiner_tensor, lane_tiles, measured
from dmm_fast.cuda.combiner_tensor import TensorTiling
from dmm_fast.cuda.devices import CLUSTER_SIZES, H100, Device
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.measured import Case, Measurements
from dmm_fast.cuda.rnn_bf16 import Bf16Tiling, bf16_cuts, has_bf16
from dmm_fast.cuda.rnn_plans import Cut, WarpTiling, warp_cuts, word_cuts
from dmm_fast.cuda.scan_kernels import kernels, shared_bytes
from dmm_fast.cuda.tilings import (
    CHUNK,
    COMBINER_GROUP,
    RNN_GROUP,
    TENSOR_CHUNK,
    THREADS,
    Tiling,
    step_cycles,
    tensor_tilings,
    tiling_of,
)

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)  # candidate rows per cluster
MOST_ROWS = ROWS[-1]

Exchange = Literal["none", "cluster", "memory"]
# The estimate of exchanges through device memory relies on published latencies, that of clusters on own
# measurements. If both are possible, the former has to be faster by this factor to be chosen.
_UNMEASURED = 1.25
AnyTiling = Tiling | WarpTiling | LaneTile | Bf16Tiling | TensorTiling


class Plan(NamedTuple):
    """A division of a scan among clusters, blocks and threads."""

    rows_per_cluster: int
    rows_per_group: int  # rows that are processed together in a step
    cluster_size: int
    tilings: tuple[AnyTiling, ...]
    clusters: int
    shared_bytes: int  # shared memory per block
    step_cycles: float  # estimated cycles of a step of all clusters
    us_per_step: float | None = None  # measured time, if the plan was chosen by measurement
    exchange: Exchange = "cluster"  # the exchange between blocks: distributed shared memory or device memory

    @property
    def streamed(self) -> int:
        """Weights per thread that are read from device memory at every step."""
        return sum(16 * (t.quads - t.in_registers - t.in_shared) for t in self.tilings)

    @property
    def threads(self) -> int:
        """The number of threads of a block."""
        return max(tiling.threads for tiling in self.tilings)

    @property
    def given(self) -> int:
        """The number of elements per row that a block sends to each other block at every step.

        For ``rnn_scan`` they are its units, for ``combiner_scan`` its partial sums of loc and pre_scale; on
        tensor cores the partial sums of the other block's latents, and its own latents.
        """
        tiling = self.tilings[-1]
        if isinstance(tiling, TensorTiling):
            return 3 * tiling.share(self.cluster_size)
        return tiling.block_outputs if isinstance(tiling, WarpTiling) else tiling.outputs

    @property
    def numbers(self) -> list[int]:
        """The plan as a list of integers, the argument of the compiled ops."""
        by_memory = [1] if self.exchange == "memory" else []
        return [*self[:3], *(n for tiling in self.tilings for n in tiling), *by_memory]

    def __str__(self) -> str:
        on_tensor_cores = any(tiling.tensor_tiles for tiling in self.tilings)
        kept = sum(tiling.kept for tiling in self.tilings)
        tiling = self.tilings[0]
        of_warps = f"{tiling.outputs} outputs per warp; " if isinstance(tiling, WarpTiling) else ""
        shared = sum(tiling.shared_weights for tiling in self.tilings)
        by_memory = self.exchange == "memory"
        unit = "team" if by_memory else "cluster"
        how = " that exchange through device memory" if by_memory else ""
        return (
            f"{self.clusters} {unit}s of {self.cluster_size} blocks of {self.threads} threads{how}; "
            f"{self.rows_per_cluster} rows per {unit}, {self.rows_per_group} at once; "
            f"a thread's weights: {kept} in registers, {shared} in shared memory, "
            f"{self.streamed} read at every step; {'on tensor cores; ' if on_tensor_cores else ''}{of_warps}"
            f"{self.shared_bytes} bytes of shared memory per block"
        )


_measured: Measurements | None = None


def use_measured(path: Path | None) -> None:
    """From now on, prefer the fastest measured plan in the whole process.

    A measurement applies to exactly its sizes and to devices with its device's name; all other plans are
    chosen by the estimate.

    Args:
        path: a file of :mod:`.measured`; None: use the estimate only.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a file of measured plans.
    """
    global _measured
    _measured = None if path is None else measured.read(path)
    rnn_plan.cache_clear()
    combiner_plan.cache_clear()


@lru_cache(maxsize=1024)
def rnn_plan(
    rows: int,
    units: int,
    device: Device = H100,
    backward: bool = False,
    tf32: bool = False,
    bf16: bool = False,
) -> Plan:
    """The plan for ``rnn_scan`` with ``rows`` = P B sequences and H = ``units``.

    ``tf32`` allows tensor cores, which round factors to ten bits of mantissa; ``bf16`` allows seven bits.

    Raises:
        ValueError: not even one row fits into a block's shared memory, or there is no kernel for the fastest
            measured plan.
    """
    bf16 = bf16 and has_bf16(rows, units)  # otherwise a plan measured in tf32 applies
    case = Case("rnn_scan_backward" if backward else "rnn_scan", rows, units, tf32=tf32, bf16=bf16)
    return _best(rnn_plans(rows, units, device, backward, tf32, bf16), device, case)


@lru_cache(maxsize=1024)
def combiner_plan(
    rows: int,
    units: int,
    latents: int,
    device: Device = H100,
    backward: bool = False,
    tf32: bool = False,
) -> Plan:
    """The plan for ``combiner_scan`` with ``rows`` = P B sequences, H = ``units`` and Z = ``latents``.

    ``tf32`` allows tensor cores, which round factors to ten bits of mantissa.

    Raises:
        ValueError: not even one row fits into a block's shared memory, or there is no kernel for the fastest
            measured plan.
    """
    case = Case("combiner_scan_backward" if backward else "combiner_scan", rows, units, latents, tf32)
    return _best(combiner_plans(rows, units, latents, device, backward, tf32), device, case)


def scan_plans(rows: int, units: int, latents: int, device: Device = H100) -> dict[str, Plan]:
    """The plans of the four scans of an SVI step."""
    return {
        "rnn_scan": rnn_plan(rows, units, device),
        "rnn_scan_backward": rnn_plan(rows, units, device, backward=True),
        "combiner_scan": combiner_plan(rows, units, latents, device),
        "combiner_scan_backward": combiner_plan(rows, units, latents, device, backward=True),
    }


def rnn_plans(
    rows: int,
    units: int,
    device: Device = H100,
    backward: bool = False,
    tf32: bool = False,
    bf16: bool = False,
) -> Iterator[Plan]:
    """All candidates of :func:`rnn_plan`, including plans that do not fit the device."""
    scan = "rnn_scan_backward" if backward else "rnn_scan"
    for shape in _shapes(rows, device):
        outputs = -(-units // shape.cluster_size)
        if shape.at_once <= CHUNK:
            tilings = [tiling_of(units, outputs, registers) for (registers,) in kernels("rnn_scan")]
        else:
            tilings = tensor_tilings(units, outputs) if tf32 else []
        for tiling in tilings:
            yield _plan(scan, rows, shape, (tiling,), 4 * units, RNN_GROUP, device)
    most = min(MOST_ROWS, max(rows, 1))

    def plan(cut: Cut, by_memory: bool) -> Plan:
        shape = _Shape(*cut[:3])
        return _plan_of(rows, shape, (cut.tiling,), cut.shared_bytes, cut.cycles, device, by_memory)

    yield from (plan(cut, False) for cut in warp_cuts(units, backward, most, device))
    yield from (plan(cut, True) for cut in word_cuts(units, backward, most, device, rows))
    for low in bf16_cuts(units, backward, rows, MOST_ROWS) if bf16 else ():
        if device.at_once(low.cluster_size):
            yield _plan_of(rows, _Shape(*low[:3]), (low.tiling,), low.shared_bytes, low.cycles, device)


def combiner_plans(
    rows: int,
    units: int,
    latents: int,
    device: Device = H100,
    backward: bool = False,
    tf32: bool = False,
) -> Iterator[Plan]:
    """All candidates of :func:`combiner_plan`, including plans that do not fit the device."""
    scan = "combiner_scan_backward" if backward else "combiner_scan"
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    for shape in _shapes(rows, device):
        if shape.at_once > CHUNK:
            continue
        own = -(-units // shape.cluster_size)
        for smaller, larger in kernels("combiner_scan"):
            to_quads, from_quads = (larger, smaller) if backward else (smaller, larger)
            tilings = tiling_of(inputs, own, to_quads), tiling_of(own, outputs, from_quads)
            if (tilings[0].in_registers, tilings[1].in_registers) != (to_quads, from_quads):
                continue  # kernels without weights in registers exist only for both matrices
            received = 4 * outputs * shape.cluster_size
            yield _plan(scan, rows, shape, tilings, received, COMBINER_GROUP, device, latents)
    yield from _lane_plans(rows, units, latents, device, backward, by_memory=False)
    yield from _lane_plans(rows, units, latents, device, backward, by_memory=True)
    most = min(MOST_ROWS, max(rows, 1)) if tf32 else 0
    for cut in combiner_tensor.cuts(units, latents, backward, most):
        if device.at_once(cut.cluster_size):
            yield _plan_of(rows, _Shape(*cut[:3]), (cut.tiling,), cut.shared_bytes, cut.cycles, device)


def _lane_plans(
    rows: int, units: int, latents: int, device: Device, backward: bool, by_memory: bool
) -> Iterator[Plan]:
    """The plans of combiner_scan with lane tiles."""
    scan = "combiner_scan_backward" if backward else "combiner_scan"
    at_once = device.teams_at_once if by_memory else device.at_once
    for cut in (lane_tiles.word_cuts if by_memory else lane_tiles.cuts)(units, latents, backward):
        if at_once(cut.blocks):
            for count in range(cut.rows, min(MOST_ROWS, max(rows, 1)) + 1):
                shape, tiles = _Shape(count, cut.rows, cut.blocks), (cut.to_units, cut.from_units)
                numbers = [*shape, *cut.to_units, *cut.from_units, *([1] if by_memory else [])]
                used = shared_bytes(scan, numbers, latents)
                groups = -(-count // cut.rows)
                if by_memory:
                    cycles = cut.word_cycles(device, min(-(-rows // count), at_once(cut.blocks)), groups)
                else:
                    cycles = groups * cut.cycles(device)  # the steps of different groups do not overlap
                yield _plan_of(rows, shape, tiles, used, cycles, device, by_memory)


class _Shape(NamedTuple):
    rows: int  # rows per cluster
    at_once: int
    cluster_size: int


def _shapes(rows: int, device: Device) -> Iterator[_Shape]:
    for size in CLUSTER_SIZES:
        if device.at_once(size):
            for count in (count for count in ROWS if count <= max(rows, 1)):
                for at_once in (*range(1, CHUNK + 1), TENSOR_CHUNK // 2, TENSOR_CHUNK):
                    if at_once <= count:
                        yield _Shape(count, at_once, size)


def _filled(
    scan: str, shape: _Shape, tilings: Sequence[Tiling], latents: int, device: Device
) -> tuple[tuple[Tiling, ...], int]:
    """The tilings with as many weights in shared memory as fit, and the shared memory of a block in bytes."""
    filled = list(tilings)

    def taken() -> int:
        return shared_bytes(scan, [*shape, *(n for tiling in filled for n in tiling)], latents)

    used = taken()
    threads = max(tiling.threads for tiling in tilings)
    for i, tiling in enumerate(tilings):
        if tiling.groups <= THREADS and not tiling.tensor_tiles:
            room = (device.shared_bytes - used) // (64 * threads)  # quads per thread; one has 64 bytes
            in_shared = max(0, min(tiling.quads - tiling.in_registers, room))
            if in_shared:
                filled[i] = tiling._replace(in_shared=in_shared)
                used = taken()
    return tuple(filled), used


def _plan(
    scan: str,
    rows: int,
    shape: _Shape,
    tilings: Sequence[Tiling],
    received: int,
    fixed: float,
    device: Device,
    latents: int = 0,
) -> Plan:
    """A plan of general kernels; ``received`` and ``fixed`` are those of :func:`.step_cycles`."""
    filled, used = _filled(scan, shape, tilings, latents, device)
    step = step_cycles(filled, *shape, received, fixed, device, rows)
    return _plan_of(rows, shape, filled, used, step, device)


def _plan_of(
    rows: int,
    shape: _Shape,
    tilings: tuple[AnyTiling, ...],
    used: int,
    cycles: float,
    device: Device,
    by_memory: bool = False,
) -> Plan:
    """A plan with the given estimated cycles per step of a cluster or a team.

    If there are more teams than can run concurrently, each wave is a separate launch, since a block must only
    wait for blocks that are running.
    """
    size, clusters = shape.cluster_size, -(-rows // shape.rows)
    waves = -(-clusters // (device.teams_at_once(size) if by_memory else device.at_once(size)))
    exchange: Exchange = "memory" if by_memory else "none" if size == 1 else "cluster"
    return Plan(*shape, tilings, clusters, used, cycles * waves, exchange=exchange)


def _best(plans: Iterator[Plan], device: Device, case: Case) -> Plan:
    op = case.scan.removesuffix("_backward")
    what = f"{op} with H = {case.units}"
    if case.latents is not None:
        what += f" and Z = {case.latents}"
    fitting = [plan for plan in plans if plan.shared_bytes <= device.shared_bytes]
    if not fitting:
        raise ValueError(
            f"{what}: expected sizes for which one row fits in {device.shared_bytes} bytes of shared memory; "
            f'Triton computes any: use_backend("triton", ops=("{op}",))'
        )
    fastest = _measured.fastest(device.name, case) if _measured else None
    if fastest is None:
        # Of equally fast plans the one with the fewest clusters, since each cluster loads the weights.
        return min(fitting, key=lambda plan: (_weighed(plan, device), plan.clusters))
    for plan in fitting:
        if plan.numbers == list(fastest.plan):
            return plan._replace(us_per_step=fastest.us_per_step)
    name = f"measured plan of {case.scan}, {case.rows} rows, H = {case.units}"
    fail(name, "one that fits the device and has a kernel", str(list(fastest.plan)))


def _weighed(plan: Plan, device: Device) -> float:
    """The estimated cycles by which plans are compared."""
    return plan.step_cycles * (_UNMEASURED if plan.exchange == "memory" and device.has_clusters else 1.0)
