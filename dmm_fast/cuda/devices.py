"""The properties of GPUs on which a plan of the scans depends, and a table of known GPUs."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CLUSTER_SIZES = (1, 2, 4, 8, 16)
_KIB = 1024


class Architecture(NamedTuple):
    """Properties shared by all GPUs of a compute capability."""

    fp32_lanes: int  # float32 lanes per multiprocessor
    shared_bytes: int  # maximum shared memory per block
    clock: float  # GHz of a known GPU, for devices that do not report their clock
    l2_latency: float  # cycles of a load from the farthest part of the L2 cache
    l2_share: float  # L2 bandwidth per multiprocessor in bytes per cycle, when all of them read


# Lanes and shared memory are those of NVIDIA's CUDA C++ Programming Guide.
#
# Latencies were measured by pointer chasing: RRZE's gpu-benches has an A100 80 GB, an A40, an L40 and an
# H100 PCIe; M. Dewing's AI_kernels an RTX 4090, an RTX 5090, a GH200 and a B200. The L2 caches of an A100 and
# an H100 have two partitions, with latencies of 205 and 400 cycles, and of 265 and 475. A step waits for its
# last value, so the farther partition counts. For a B200, whose average is 295, the latency of the other die
# is not published; the H100's ratio is assumed. Within a partition the latency also varies by multiprocessor,
# from 222 to 339 cycles on an L40, 279 on average (Alpay and Basaran, 2026); the average is used here.
#
# l2_share is the L2 bandwidth in gpu-benches divided by clock and number of multiprocessors: A100 5.4 TB/s,
# A40 2.5 TB/s, L40 5.2 TB/s, H200 9.8 TB/s, GB200 18.9 TB/s. For 12.0 that of 8.9 is assumed.
ARCHITECTURES = {
    (8, 0): Architecture(64, 163 * _KIB, 1.41, 400.0, 35.0),
    (8, 6): Architecture(128, 99 * _KIB, 1.70, 250.0, 17.0),
    (8, 9): Architecture(128, 99 * _KIB, 2.52, 296.0, 14.0),
    (9, 0): Architecture(128, 227 * _KIB, 1.98, 475.0, 37.0),
    (10, 0): Architecture(128, 227 * _KIB, 1.965, 530.0, 60.0),
    (12, 0): Architecture(128, 99 * _KIB, 2.407, 360.0, 14.0),
}
# Maximum bytes per cycle from L2 to one multiprocessor, from NVIDIA's whitepaper on the A100.
_MOST_FROM_L2 = 64.0


class Device(NamedTuple):
    """The properties of a GPU on which a plan depends."""

    name: str  # the name reported by CUDA, by which measurements are found
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int  # maximum shared memory per block
    clusters: tuple[int, ...]  # for each of CLUSTER_SIZES, the number of clusters that run concurrently
    clock: float  # GHz
    between: tuple[
        tuple[int, int], ...
    ] = ()  # further cluster sizes with the number of clusters that run concurrently, from CUDA

    @property
    def architecture(self) -> Architecture:
        """The architecture of the compute capability, or of the latest known one before it."""
        known = [each for each in ARCHITECTURES if each <= self.capability]
        return ARCHITECTURES[max(known, default=(8, 0))]

    @property
    def arch(self) -> str:
        """The compute capability in nvcc's notation."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def has_clusters(self) -> bool:
        """True if clusters of more than one block are supported."""
        return any(self.clusters[1:])

    @property
    def most_blocks(self) -> int:
        """The size of the largest cluster that can run."""
        return max(size for size, count in zip(CLUSTER_SIZES, self.clusters, strict=True) if count)

    @property
    def ffma_cycles(self) -> int:
        """Issue cycles of a warp's FFMA on its scheduler, one of four per multiprocessor."""
        return 128 // self.architecture.fp32_lanes

    def at_once(self, size: int) -> int:
        """A lower bound of the number of clusters of ``size`` blocks that run concurrently."""
        if size in dict(self.between):
            return dict(self.between)[size]
        each = zip(CLUSTER_SIZES[1:], self.clusters[1:], strict=True)
        if size in CLUSTER_SIZES:
            return self.clusters[CLUSTER_SIZES.index(size)]
        return max((count * (larger // size) for larger, count in each if larger > size), default=0)

    def teams_at_once(self, blocks: int) -> int:
        """The number of teams of ``blocks`` blocks that run concurrently, one block per multiprocessor."""
        return self.multiprocessors // blocks

    def l2_bytes(self, blocks: int) -> float:
        """L2 bandwidth in bytes per cycle for each of ``blocks`` blocks that read concurrently."""
        all_of_it = self.architecture.l2_share * self.multiprocessors
        return min(_MOST_FROM_L2, all_of_it / min(max(blocks, 1), self.multiprocessors))

    def us(self, cycles: float) -> float:
        """Convert cycles to microseconds."""
        return cycles / self.clock / 1e3


def _known(
    name: str, capability: tuple[int, int], clock: float, multiprocessors: int, *clusters: int
) -> Device:
    """A GPU from its datasheet; ``clusters``: concurrent clusters of 2, 4, 8 and 16 blocks, if supported."""
    at_once = (multiprocessors, *(clusters or (0,) * (len(CLUSTER_SIZES) - 1)))
    shared_bytes = ARCHITECTURES[capability].shared_bytes
    return Device(name, capability, multiprocessors, shared_bytes, at_once, clock)


# A cluster lies within one group of multiprocessors (GPC), and some groups lack a few multiprocessors; these
# are the numbers reported by CUDA on an H100.
H100 = _known("NVIDIA H100 80GB HBM3", (9, 0), 1.98, 132, 66, 30, 15, 7)
# Multiprocessors and boost clocks are from NVIDIA's datasheets. Only CUDA can report the number of concurrent
# clusters. The numbers for an H200, which has the same chip, are those of an H100; for the others they assume
# that each group has the number of multiprocessors of the smallest one, 18 (B200), 14 (RTX 5090) or 12
# (RTX 5080).
KNOWN = {
    "h100": H100,
    "h200": H100._replace(name="NVIDIA H200"),
    "b200": _known("NVIDIA B200", (10, 0), 1.965, 148, 72, 32, 16, 8),
    "a100": _known("NVIDIA A100-SXM4-80GB", (8, 0), 1.41, 108),
    "a6000": _known("NVIDIA RTX A6000", (8, 6), 1.8, 84),
    "rtx3080": _known("NVIDIA GeForce RTX 3080", (8, 6), 1.71, 68),
    "rtx3090": _known("NVIDIA GeForce RTX 3090", (8, 6), 1.695, 82),
    "rtx4080": _known("NVIDIA GeForce RTX 4080", (8, 9), 2.505, 76),
    "rtx4090": _known("NVIDIA GeForce RTX 4090", (8, 9), 2.52, 128),
    "l4": _known("NVIDIA L4", (8, 9), 2.04, 58),
    "l40s": _known("NVIDIA L40S", (8, 9), 2.52, 142),
    "rtx5080": _known("NVIDIA GeForce RTX 5080", (12, 0), 2.617, 84, 42, 21, 7, 0),
    "rtx5090": _known("NVIDIA GeForce RTX 5090", (12, 0), 2.407, 170, 77, 33, 11, 0),
}


def device_of(tensor: Tensor) -> Device:
    """The properties of the device of a tensor."""
    # If the kernels are emulated, CPU tensors are treated as those of an H100.
    return cuda_device(tensor.get_device()) if tensor.is_cuda else H100


@lru_cache
def cuda_device(index: int) -> Device:
    """The properties of the CUDA device with this index."""
    found = torch.cuda.get_device_properties(index)
    shared_bytes: int = found.shared_memory_per_block_optin  # type: ignore[attr-defined]  # not in the stubs
    count: int = found.multi_processor_count

    def at_once(size: int) -> int:
        if size == 1:  # a block may use all shared memory of its multiprocessor
            return count
        # Clusters need compute capability 9.0; more than 8 blocks are supported on data centre GPUs only.
        if found.major < 9 or (size > 8 and found.major not in (9, 10)):
            return 0
        clusters: int = torch.ops.dmm_fast._clusters_at_once(index, size, shared_bytes)
        return clusters

    clusters = tuple(at_once(size) for size in CLUSTER_SIZES)
    others = [size for size in range(2, CLUSTER_SIZES[-1]) if size not in CLUSTER_SIZES and any(clusters[1:])]
    between = tuple((size, at_once(size)) for size in others)
    device = Device(found.name, (found.major, found.minor), count, shared_bytes, clusters, 0.0, between)
    # In kHz; not every build of torch has this property.
    clock = getattr(found, "clock_rate", 0) / 1e6
    return device._replace(clock=clock or device.architecture.clock)
