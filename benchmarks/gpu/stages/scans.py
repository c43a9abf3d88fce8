"""Times of the scans, of cuDNN's recurrence, and of the floors of the exchanges."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import exchange_floor
from benchmarks.cases import TUTORIAL_STEPS
from benchmarks.correctness import CheckResult
from benchmarks.draws import Sizes
from benchmarks.errors import QUICK
from benchmarks.gpu.calls import SCANS, Call, Function, by, runnable
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.plan_sweep import time_plans
from benchmarks.gpu.plans import fastest
from benchmarks.gpu.smoke import FLOOR_KERNEL, FLOOR_STORES, WORDS
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.timed_case import Part, time_if_correct, time_parts, work_of
from benchmarks.precision import IEEE, multiplied_in
from dmm_fast.cuda.devices import Device, cuda_device
from dmm_fast.cuda.plan import Plan, combiner_plans, rnn_plans, scan_plans

SUITE = "scans"
FASTEST = "cuda"
# Variants of the exchange floor: blocks per cluster, and warps that store.
CLUSTERS, WARPS = (8, 16), (1, 2, 4)
# The slope between two numbers of steps excludes the launch overhead.
FLOOR_STEPS = (TUTORIAL_STEPS, 8 * TUTORIAL_STEPS)
UNIT_SECONDS = 45.0
# Other sizes than the tutorial's, one varied at a time, the most important ones first.
ALONG = (
    *(("B", 1), ("B", 64), ("B", 256), ("T", 1024)),
    *(("H", 64), ("H", 128), ("H", 256), ("H", 1024), ("B", 4), ("B", 1024), ("T", 4096)),
)


def units(stage: Stage) -> Iterator[Unit]:
    """Units at the tutorial's size: CUDA scans, cuDNN, floors; then slower backends and plan sweeps."""
    sizes = QUICK if stage.quick else Sizes()
    scans = list(_of_each_backend(stage, sizes))
    fast = [unit for unit in scans if unit.name.endswith(f", {FASTEST}")]
    yield from fast
    yield Unit(f"nn.RNN, {_case(sizes)}", partial(time_rnn, stage, sizes))
    for scan in scan_plans(1, 1, 1):
        yield Unit(f"floor of {scan}", partial(time_floor_of_plan, stage, scan, sizes))
        yield Unit(
            f"floor of {scan}, by memory", partial(time_floor_of_plan, stage, scan, sizes, by_memory=True)
        )
    for cluster_size in CLUSTERS:
        yield Unit(f"floor, clusters of {cluster_size}", partial(time_floors, stage, cluster_size, sizes))
    yield from (unit for unit in scans if unit not in fast)
    for scan in scan_plans(1, 1, 1):
        yield Unit(f"plan sweep of {scan}", partial(time_plans, stage, SUITE, scan, sizes), UNIT_SECONDS)


def size_units(stage: Stage) -> Iterator[Unit]:
    """Units at other sizes than the tutorial's, one of them varied at a time."""
    for axis, n in ALONG[: 1 if stage.quick else None]:
        varied: dict[str, Any] = {axis: n}
        sizes = replace(QUICK if stage.quick else Sizes(), **varied)
        yield from _of_each_backend(stage, sizes)
        yield Unit(f"nn.RNN, {_case(sizes)}", partial(time_rnn, stage, sizes))


def _of_each_backend(stage: Stage, sizes: Sizes) -> Iterator[Unit]:
    for op in SCANS:
        for name in runnable(op, stage.device, stage.record):
            run = partial(time_scan, stage, op, name, sizes)
            yield Unit(f"{op}, {_case(sizes)}, {name}", run, UNIT_SECONDS)


def _case(sizes: Sizes) -> str:
    return f"B={sizes.B}, H={sizes.H}, Z={sizes.Z}, T={sizes.T}"


def time_scan(stage: Stage, op: str, name: str, sizes: Sizes) -> None:
    """Check a scan, then time forward, backward, and both; all but backward alone also from a graph."""
    call, T = Call(op, sizes, stage.device), sizes.T
    # Capturing thousands of eager steps would take longer than the rest of the stage.
    graph = name != "reference" or T <= TUTORIAL_STEPS

    def parts(function: Function) -> list[Part]:
        return [
            Part("forward", call.forward(function), work_of(call, both=False), graph, T),
            Part("backward", call.backward(function), {}, graph=False, steps=T),
            Part("forward and backward", call.both(function), work_of(call, both=True), graph, T),
        ]

    time_if_correct(stage, SUITE, call, f"{op}, {_case(sizes)}", name, by(name, op), parts)


@multiplied_in(IEEE)
def time_rnn(stage: Stage, sizes: Sizes) -> None:
    """Time PyTorch's RNN, on a GPU cuDNN's, including its input projection, with rows of full length."""
    for dtype in (torch.float32, torch.float16) if stage.device == "cuda" else (torch.float32,):
        rnn = torch.nn.RNN(sizes.D, sizes.H, nonlinearity="relu").to(stage.device, dtype)
        x = torch.randn(sizes.T, sizes.B, sizes.D, device=stage.device, dtype=dtype, requires_grad=True)
        incoming = torch.randn(sizes.T, sizes.B, sizes.H, device=stage.device, dtype=dtype)
        # The autograd graph for backward alone stays alive, so it needs its own leaves (see Call.backward).
        held, held_x = copy.deepcopy(rnn), x.detach().clone().requires_grad_()
        h, of_held = held(held_x)[0], (held_x, *held.parameters())

        def backward(h: Any = h, wanted: Any = of_held, incoming: Any = incoming) -> object:
            return torch.autograd.grad(h, wanted, incoming, retain_graph=True)

        def both(rnn: Any = rnn, x: Any = x, incoming: Any = incoming) -> object:
            return torch.autograd.grad(rnn(x)[0], (x, *rnn.parameters()), incoming)

        parts = (
            Part("forward", partial(rnn, x), {}, steps=sizes.T),
            Part("backward", backward, {}, graph=False, steps=sizes.T),
            Part("forward and backward", both, {}, steps=sizes.T),
        )
        impl = f"nn.RNN, {str(dtype).removeprefix('torch.')}"
        time_parts(stage, SUITE, f"rnn_scan, {_case(sizes)}", impl, parts)


class Floor(NamedTuple):
    """An exchange to time: ``width`` floats per block, stored by ``warps`` of its warps; 0: by all."""

    case: str
    clusters: int
    cluster_size: int
    width: int
    threads: int = 256
    store: str = FLOOR_STORES[0]
    warps: int = 0


def time_floors(stage: Stage, size: int, sizes: Sizes) -> None:
    """Time the exchanges of a recurrence with every kind of store, on all clusters that run concurrently."""
    case = f"exchange floor, clusters of {size}, B={sizes.B}, H={sizes.H}"
    if not _has_floor(stage, case):
        return
    most = cuda_device(torch.cuda.current_device()).at_once(size)
    if not most:
        stage.record.not_run(case, FLOOR_KERNEL, f"no cluster of {size} blocks runs on this GPU")
        return
    rows = -(-sizes.B // most)
    floor = Floor(case, -(-sizes.B // rows), size, rows * -(-sizes.H // size))
    for store, warps in itertools.product(FLOOR_STORES, WARPS):
        fields = {"rows_a_cluster": rows, "clusters_at_once": most}
        _time_exchanges(stage, floor._replace(store=store, warps=warps), fields)


def time_floor_of_plan(stage: Stage, scan: str, sizes: Sizes, by_memory: bool = False) -> None:
    """Time the exchanges of a scan under its plan here, or under the best plan through device memory."""
    case = f"exchange floor of {scan}{', by memory' * by_memory}, {_case(sizes)}"
    if not _has_floor(stage, case):
        return
    device = cuda_device(torch.cuda.current_device())
    if by_memory:
        plan = _by_memory(scan, sizes, device)
    else:
        plan = scan_plans(sizes.B, sizes.H, sizes.Z, device)[scan]
    floor = Floor(case, plan.clusters, plan.cluster_size, plan.rows_per_cluster * plan.given, plan.threads)
    if plan.exchange == "memory":
        floor = floor._replace(store=WORDS)
    fields = {"rows_a_cluster": plan.rows_per_cluster, "plan": str(plan)}
    _time_exchanges(stage, floor, fields)


def _by_memory(scan: str, sizes: Sizes, device: Device) -> Plan:
    backward = scan.endswith("_backward")
    if scan.startswith("rnn"):
        return fastest(rnn_plans, 2, "memory", sizes.B, sizes.H, device, backward)
    return fastest(combiner_plans, 3, "memory", sizes.B, sizes.H, sizes.Z, device, backward)


def _time_exchanges(stage: Stage, floor: Floor, fields: dict[str, Any]) -> None:
    """Check and time an exchange; the width is rounded up to a multiple of the floats per store."""
    multiple = 3 if floor.store == WORDS else 4
    width = -(-floor.width // multiple) * multiple
    rings = torch.randn(floor.clusters, floor.cluster_size * width, device=stage.device)
    arguments = floor.cluster_size, floor.threads, floor.store, floor.warps

    def exchange(steps: int) -> Tensor:
        return torch.ops.dmm_fast_benchmarks.exchange_floor(rings, steps, *arguments)

    same = torch.equal(exchange(FLOOR_STEPS[0]), rings.roll(-FLOOR_STEPS[0], 1))
    impl = f"{floor.store}, {f'{floor.warps} warps' if floor.warps else f'{floor.threads} threads'}"
    row = CheckResult("exchange_floor", "cuda", f"{floor.case}, {impl}", float(not same), 0.0, same)
    stage.record.correctness(row.as_dict())
    few, many = (time_calls(partial(exchange, n), stage.device, seconds=0.05) for n in FLOOR_STEPS)
    slope = 1e3 * (many.median - few.median) / (FLOOR_STEPS[1] - FLOOR_STEPS[0])
    fields = {"clusters": floor.clusters, "width": width, "us_per_step": slope, **fields}
    stage.record.case(SUITE, floor.case, impl, few.as_dict(), steps=FLOOR_STEPS[0], **fields)


def _has_floor(stage: Stage, case: str) -> bool:
    failed = any(row["op"] == FLOOR_KERNEL for row in stage.record.failed_kernels())
    why = "its kernel failed the smoke test" if failed else exchange_floor.missing(stage.device)
    if why:
        stage.record.not_run(case, FLOOR_KERNEL, why)
    return not why
