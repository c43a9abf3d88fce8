"""Microseconds a time step of the two scans, beside cuDNN's recurrence and the floor of the exchanges."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.cases import TUTORIAL_STEPS
from benchmarks.correctness import Verdict
from benchmarks.errors import QUICK, Sizes
from benchmarks.gpu.agreement import Agreement
from benchmarks.gpu.calls import Call, backends_of, by
from benchmarks.gpu.ceilings import measured
from benchmarks.gpu.clocked import Extra, Part, agrees, clock, work_of
from benchmarks.gpu.cuts import time_cuts
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.sizes import ALONG, SCANS
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.precision import IEEE, multiplied_in
from dmm_fast import native
from dmm_fast.cuda.plan import cuda_device, scan_plans

SUITE = "scans"
CLUSTERS = (4, 8, 16)
THREADS = (256, 512)
# The slope between two numbers of steps is free of the launch.
FLOOR_STEPS = (TUTORIAL_STEPS, 8 * TUTORIAL_STEPS)
UNIT_SECONDS = 45.0


def units(stage: Stage) -> Iterator[Unit]:
    """The tutorial's size, the floor, the peers, and then along each axis."""
    tutorial = QUICK if stage.quick else Sizes()
    along = (
        []
        if stage.quick
        else [replace(tutorial, **{axis: n}) for axis, sizes in ALONG.items() for n in sizes]
    )
    yield from _of_each_backend(stage, tutorial)
    for size in CLUSTERS:
        yield Unit(f"floor, clusters of {size}", partial(time_floor, stage, size, tutorial))
    for scan in scan_plans(1, 1, 1):
        yield Unit(f"floor of {scan}", partial(time_floor_of_plan, stage, scan, tutorial))
    for scan in scan_plans(1, 1, 1):
        yield Unit(f"plan sweep of {scan}", partial(time_cuts, stage, SUITE, scan, tutorial), UNIT_SECONDS)
    yield Unit("FlashRNN", partial(look_for_flash_rnn, stage))
    for sizes in [tutorial, *along]:
        yield Unit(f"nn.RNN, {_case(sizes)}", partial(time_rnn, stage, sizes))
        if sizes is not tutorial:
            yield from _of_each_backend(stage, sizes)


def _of_each_backend(stage: Stage, sizes: Sizes) -> Iterator[Unit]:
    for op in SCANS:
        for name in backends_of(op, stage.device):
            run = partial(time_scan, stage, op, name, sizes)
            yield Unit(f"{op}, {_case(sizes)}, {name}", run, UNIT_SECONDS)


def _case(sizes: Sizes) -> str:
    return f"B={sizes.B}, H={sizes.H}, Z={sizes.Z}, T={sizes.T}"


def per_step(steps: int, further: Extra | None = None) -> Extra:
    """What a row's ``extra`` says: the median over the steps, and what ``further`` adds."""
    return lambda samples: {
        "us_per_step": 1e3 * samples.median / steps,
        **(further(samples) if further else {}),
    }


def time_scan(stage: Stage, op: str, name: str, sizes: Sizes) -> None:
    """Check it, then time forward, backward alone, and both, which a graph can hold."""
    call, ceilings = Call(op, sizes, stage.device), measured(stage.out / "results.json")
    case, function = f"{op}, {_case(sizes)}", by(name, op)
    if name != "reference" and not agrees(stage, Agreement(call, case), name, function):
        stage.record.not_run(case, name, "beyond its bound")
        return
    # Thousands of steps of eager kernels take longer to capture than all else here together.
    graph = name != "reference" or sizes.T <= TUTORIAL_STEPS
    forward, both = (work_of(call, ceilings, both=both) for both in (False, True))
    parts = (
        Part("forward", call.forward(function), per_step(sizes.T, forward), graph),
        Part("backward", call.backward(function), per_step(sizes.T), graph=False),
        Part("forward and backward", call.both(function), per_step(sizes.T, both), graph),
    )
    clock(stage, SUITE, case, name, parts)


@multiplied_in(IEEE)
def time_rnn(stage: Stage, sizes: Sizes) -> None:
    """PyTorch's own recurrence, on a GPU cuDNN's, projecting its inputs from D features; all rows full."""
    for dtype in (torch.float32, torch.float16) if stage.device == "cuda" else (torch.float32,):
        rnn = torch.nn.RNN(sizes.D, sizes.H, nonlinearity="relu").to(stage.device, dtype)
        x = torch.randn(sizes.T, sizes.B, sizes.D, device=stage.device, dtype=dtype, requires_grad=True)
        incoming = torch.randn(sizes.T, sizes.B, sizes.H, device=stage.device, dtype=dtype)
        wanted = [x, *rnn.parameters()]
        h, _ = rnn(x)

        def backward(h: Any = h, wanted: Any = wanted, incoming: Any = incoming) -> object:
            return torch.autograd.grad(h, wanted, incoming, retain_graph=True)

        def both(rnn: Any = rnn, x: Any = x, wanted: Any = wanted, incoming: Any = incoming) -> object:
            return torch.autograd.grad(rnn(x)[0], wanted, incoming)

        extra = per_step(sizes.T)
        parts = (
            Part("forward", partial(rnn, x), extra),
            Part("backward", backward, extra, graph=False),
            Part("forward and backward", both, extra),
        )
        impl = f"nn.RNN, {str(dtype).removeprefix('torch.')}"
        clock(stage, SUITE, f"rnn_scan, {_case(sizes)}", impl, parts)


def time_floor(stage: Stage, cluster_size: int, sizes: Sizes) -> None:
    """A scan's exchanges and nothing else, on as many clusters as the GPU holds or rows ask for."""
    case = f"exchange floor, clusters of {cluster_size}, B={sizes.B}, H={sizes.H}"
    if not _has_floor(stage, case):
        return
    clusters = min(sizes.B, torch.cuda.get_device_properties(0).multi_processor_count // cluster_size)
    rows = -(-sizes.B // clusters)
    width = -(-rows * sizes.H // cluster_size)
    for threads in THREADS:
        _time_exchanges(stage, case, clusters, cluster_size, width, threads, {"rows_a_cluster": rows})


def time_floor_of_plan(stage: Stage, scan: str, sizes: Sizes) -> None:
    """The exchanges of a scan as it is cut up on this GPU: what its time a step is measured against."""
    case = f"exchange floor of {scan}, {_case(sizes)}"
    if not _has_floor(stage, case):
        return
    plan = scan_plans(sizes.B, sizes.H, sizes.Z, cuda_device(torch.cuda.current_device()))[scan]
    # A block of rnn_scan gives its units; of combiner_scan, partial sums of all that the latents need.
    width = plan.rows_per_cluster * plan.tilings[-1].outputs
    told = {"rows_a_cluster": plan.rows_per_cluster, "plan": str(plan)}
    _time_exchanges(stage, case, plan.clusters, plan.cluster_size, width, plan.threads, told)


def _time_exchanges(
    stage: Stage, case: str, clusters: int, size: int, width: int, threads: int, told: dict[str, Any]
) -> None:
    exchange_floor = torch.ops.dmm_fast.exchange_floor
    rings = torch.randn(clusters, size * width, device=stage.device)
    turned = exchange_floor(rings, FLOOR_STEPS[0], size, threads)
    same = torch.equal(turned, rings.roll(-FLOOR_STEPS[0], 1))
    row = Verdict("exchange_floor", "cuda", f"{case}, {threads} threads", float(not same), 0.0, same)
    stage.record.correctness(row.as_dict())
    few, many = (
        time_calls(partial(exchange_floor, rings, steps, size, threads), stage.device)
        for steps in FLOOR_STEPS
    )
    slope = 1e3 * (many.median - few.median) / (FLOOR_STEPS[1] - FLOOR_STEPS[0])
    told = {"clusters": clusters, "width": width, "us_per_step": slope, **told}
    stage.record.case(SUITE, case, f"{threads} threads", few.as_dict(), steps=FLOOR_STEPS[0], **told)


def _has_floor(stage: Stage, case: str) -> bool:
    there = stage.device == "cuda" and bool(native.cuda_architectures())
    if not there:
        stage.record.not_run(case, "cuda", "the library has no CUDA kernel for exchange_floor here")
    return there


def look_for_flash_rnn(stage: Stage) -> None:
    """A peer that is named whether or not it is there."""
    there = find_spec("flashrnn") is not None
    why = "installed, and nobody has written how to call it" if there else "flashrnn is not installed"
    stage.record.not_run("rnn_scan", "FlashRNN", why)
