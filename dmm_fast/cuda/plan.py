"""Plans of the scans on thread-block clusters: pure functions of the sizes and the device.

A cluster of blocks has some rows of the batch; every block of it has a part of the weights, on the chip for
the whole scan, and at every step all blocks exchange what they made. Larger clusters leave less
arithmetic to a block and have more to exchange. The rows of a cluster go in groups that take turns. The
plan is the fastest that was measured at these sizes on this device (:func:`use_measured`), or else the one
of least estimated time.

The estimate counts cycles. For the kernels that take a few rows at once (:mod:`.rnn_plans`,
:mod:`.lane_tiles`) it is made of the instructions of their machine code and of an exchange as an H100 took
it; for those that take any sizes (:mod:`.tilings`), of published throughputs and of what a group took there.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmm_fast.check import fail
from dmm_fast.cuda import lane_tiles, measured
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.measured import Case, Measurements
from dmm_fast.cuda.rnn_plans import WarpTiling, warp_cuts
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

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)  # of a cluster, where there are many plans
MOST_ROWS = ROWS[-1]
CLUSTER_SIZES = (1, 2, 4, 8, 16)


class Device(NamedTuple):
    """The properties of a GPU that a plan depends on."""

    shared_bytes: int  # that a block may have
    clusters: tuple[int, ...]  # of each of CLUSTER_SIZES, that run at a time
    name: str = ""  # as CUDA gives it; measurements are of a device of that name

    def at_once(self, size: int) -> int:
        """The number of clusters of so many blocks that run at a time; for sizes between, at least."""
        each = zip(CLUSTER_SIZES[1:], self.clusters[1:], strict=True)
        if size in CLUSTER_SIZES:
            return self.clusters[CLUSTER_SIZES.index(size)]
        return max(count * (larger // size) for larger, count in each if larger > size)


# A cluster lies within a group of multiprocessors, and some groups lack a few; as CUDA counts them.
H100 = Device(232_448, (132, 66, 30, 15, 7), "NVIDIA H100 80GB HBM3")


class Plan(NamedTuple):
    """A division of a scan among clusters, blocks and threads."""

    rows_per_cluster: int
    rows_per_group: int  # that take their steps together
    cluster_size: int
    tilings: tuple[Tiling | WarpTiling | LaneTile, ...]
    clusters: int
    shared_bytes: int  # of a block
    step_cycles: float  # estimated, of all clusters
    us_per_step: float | None = None  # measured, if that is why the plan was chosen

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return max(tiling.threads for tiling in self.tilings)

    @property
    def given(self) -> int:
        """Numbers of a row that a block gives to each other block at every step.

        For ``rnn_scan`` they are its units, for ``combiner_scan`` its partial sums of what the latents need.
        """
        tiling = self.tilings[-1]
        return tiling.block_outputs if isinstance(tiling, WarpTiling) else tiling.outputs

    @property
    def numbers(self) -> list[int]:
        """The plan as the compiled ops take it."""
        return [*self[:3], *(n for tiling in self.tilings for n in tiling)]

    def __str__(self) -> str:
        on_tensor_cores = any(tiling.tensor_tiles for tiling in self.tilings)
        kept = sum(tiling.kept for tiling in self.tilings)
        tiling = self.tilings[0]
        of_warps = f"{tiling.outputs} outputs a warp; " if isinstance(tiling, WarpTiling) else ""
        shared = sum(tiling.shared_weights for tiling in self.tilings)
        streamed = sum(16 * (t.quads - t.in_registers - t.in_shared) for t in self.tilings)
        return (
            f"{self.clusters} clusters of {self.cluster_size} blocks of {self.threads} threads; "
            f"{self.rows_per_cluster} rows a cluster, {self.rows_per_group} at once; "
            f"a thread's weights: {kept} in registers, {shared} in shared memory, "
            f"{streamed} read at every step; {'on tensor cores; ' if on_tensor_cores else ''}{of_warps}"
            f"{self.shared_bytes} bytes of shared memory a block"
        )


_measured: Measurements | None = None


def use_measured(path: Path | None) -> None:
    """Choose the fastest measured plan where there is one, in the whole process and from now on.

    A measurement counts for exactly its sizes and on devices of its device's name; for everything else there
    is the estimate.

    Args:
        path: a file of :mod:`.measured`; None: go back to the estimate alone.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file.
    """
    global _measured
    _measured = None if path is None else measured.read(path)
    rnn_plan.cache_clear()
    combiner_plan.cache_clear()


@lru_cache(maxsize=1024)
def rnn_plan(
    rows: int, units: int, device: Device = H100, backward: bool = False, tf32: bool = False
) -> Plan:
    """The plan for ``rnn_scan`` of ``rows`` = P B sequences and H = ``units``.

    ``tf32`` allows tensor cores, which round what they multiply to ten bits.

    Raises:
        ValueError: not even one row fits a block's shared memory, or there is no kernel for the fastest
            measured plan.
    """
    case = Case("rnn_scan_backward" if backward else "rnn_scan", rows, units, tf32=tf32)
    return _best(rnn_plans(rows, units, device, backward, tf32), device, case)


@lru_cache(maxsize=1024)
def combiner_plan(rows: int, units: int, latents: int, device: Device = H100, backward: bool = False) -> Plan:
    """The plan for ``combiner_scan`` of ``rows`` = P B sequences, H = ``units`` and Z = ``latents``.

    Raises:
        ValueError: not even one row fits a block's shared memory, or there is no kernel for the fastest
            measured plan.
    """
    case = Case("combiner_scan_backward" if backward else "combiner_scan", rows, units, latents)
    return _best(combiner_plans(rows, units, latents, device, backward), device, case)


def scan_plans(rows: int, units: int, latents: int, device: Device = H100) -> dict[str, Plan]:
    """The plans of the four scans of a step of SVI."""
    return {
        "rnn_scan": rnn_plan(rows, units, device),
        "rnn_scan_backward": rnn_plan(rows, units, device, backward=True),
        "combiner_scan": combiner_plan(rows, units, latents, device),
        "combiner_scan_backward": combiner_plan(rows, units, latents, device, backward=True),
    }


def rnn_plans(
    rows: int, units: int, device: Device = H100, backward: bool = False, tf32: bool = False
) -> Iterator[Plan]:
    """Every plan that :func:`rnn_plan` chooses from; not all of them fit the device."""
    scan = "rnn_scan_backward" if backward else "rnn_scan"
    for shape in _shapes(rows, device):
        outputs = -(-units // shape.cluster_size)
        if shape.at_once <= CHUNK:
            tilings = [tiling_of(units, outputs, registers) for (registers,) in kernels("rnn_scan")]
        else:
            tilings = tensor_tilings(units, outputs) if tf32 else []
        for tiling in tilings:
            yield _plan(scan, rows, shape, (tiling,), 4 * units, RNN_GROUP, device)
    for cut in warp_cuts(units, backward, min(MOST_ROWS, max(rows, 1))):
        if device.at_once(cut.cluster_size):
            yield _plan_of(rows, _Shape(*cut[:3]), (cut.tiling,), cut.shared_bytes, cut.cycles, device)


def combiner_plans(
    rows: int, units: int, latents: int, device: Device = H100, backward: bool = False
) -> Iterator[Plan]:
    """Every plan that :func:`combiner_plan` chooses from; not all of them fit the device."""
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
                continue  # one keeps no weights, of which there is a kernel where neither does
            received = 4 * outputs * shape.cluster_size
            yield _plan(scan, rows, shape, tilings, received, COMBINER_GROUP, device, latents)
    for cut in lane_tiles.cuts(units, latents, backward):
        if device.at_once(cut.cluster_size):
            for count in range(cut.rows, min(MOST_ROWS, max(rows, 1)) + 1):
                shape, tiles = _Shape(count, cut.rows, cut.cluster_size), (cut.to_units, cut.from_units)
                used = shared_bytes(scan, [*shape, *cut.to_units, *cut.from_units], latents)
                cycles = -(-count // cut.rows) * cut.cycles  # no group hides what another's step takes
                yield _plan_of(rows, shape, tiles, used, cycles, device)


def device_of(tensor: Tensor) -> Device:
    """The properties of the device that a tensor is on."""
    # The CPU stands for a GPU where the kernels are emulated.
    return cuda_device(tensor.get_device()) if tensor.is_cuda else H100


@lru_cache
def cuda_device(index: int) -> Device:
    """The properties of the CUDA device of that index."""
    found = torch.cuda.get_device_properties(index)
    shared_bytes: int = found.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in the stubs

    def at_once(size: int) -> int:
        if size == 1:  # with all the shared memory that a block may have, it is alone
            return found.multi_processor_count
        # Clusters came with 9.0; more than 8 blocks are for data centres' chips.
        if found.major < 9 or (size > 8 and found.major not in (9, 10)):
            return 0
        count: int = torch.ops.dmm_fast._clusters_at_once(index, size, shared_bytes)
        return count

    return Device(shared_bytes, tuple(at_once(size) for size in CLUSTER_SIZES), found.name)


class _Shape(NamedTuple):
    rows: int  # of a cluster
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
    """The tilings with as many weights in shared memory as there is room for, and the bytes of a block."""
    filled = list(tilings)

    def taken() -> int:
        return shared_bytes(scan, [*shape, *(n for tiling in filled for n in tiling)], latents)

    used = taken()
    threads = max(tiling.threads for tiling in tilings)
    for i, tiling in enumerate(tilings):
        if tiling.groups <= THREADS and not tiling.tensor_tiles:
            room = (device.shared_bytes - used) // (64 * threads)  # of a quad of each thread
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
    """A plan of general kernels; ``received`` and ``fixed`` as for :func:`.step_cycles`."""
    filled, used = _filled(scan, shape, tilings, latents, device)
    step = step_cycles(filled, *shape, received, fixed)
    return _plan_of(rows, shape, filled, used, step, device)


def _plan_of(
    rows: int,
    shape: _Shape,
    tilings: tuple[Tiling | WarpTiling | LaneTile, ...],
    used: int,
    cycles: float,
    device: Device,
) -> Plan:
    """A plan of which a cluster takes so many cycles a step."""
    clusters = -(-rows // shape.rows)
    waves = -(-clusters // device.at_once(shape.cluster_size))
    return Plan(*shape, tilings, clusters, used, cycles * waves)


def _best(plans: Iterator[Plan], device: Device, case: Case) -> Plan:
    what = f"{case.scan.removesuffix('_backward')} with H = {case.units}"
    if case.latents is not None:
        what += f" and Z = {case.latents}"
    fitting = [plan for plan in plans if plan.shared_bytes <= device.shared_bytes]
    if not fitting:
        raise ValueError(
            f"{what}: expected sizes of which one row fits {device.shared_bytes} bytes of shared memory"
        )
    fastest = _measured.fastest(device.name, case) if _measured else None
    if fastest is None:
        # Of plans that take as long, the one of fewest clusters: each loads the weights.
        return min(fitting, key=lambda plan: (plan.step_cycles, plan.clusters))
    for plan in fitting:
        if plan.numbers == list(fastest.plan):
            return plan._replace(us_per_step=fastest.us_per_step)
    name = f"measured plan of {case.scan}, {case.rows} rows, H = {case.units}"
    fail(name, "one that fits the device and that there is a kernel for", str(list(fastest.plan)))
