"""Plan sweep: times of the scans under several plans, which the planner can use as measurements."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.correctness import CheckResult
from benchmarks.draws import Inputs, Sizes, draw, map_tensors
from benchmarks.errors import as_tuple
from benchmarks.gpu.calls import runnable
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.stage import Stage
from dmm_fast.cuda.devices import Device, cuda_device
from dmm_fast.cuda.measured import Case, Measurement, add
from dmm_fast.cuda.plan import Plan, combiner_plans, rnn_plans
from dmm_fast.ops.schema import OTHERS

MOST = 12
BOUND = 1e-5  # plans differ in the order of summation
FILE = "measured_plans.json"


def best_of_each_shape(plans: list[Plan], shared_bytes: int, most: int = MOST) -> list[Plan]:
    """The plan of least estimated time for each rows, rows per group, cluster size and exchange; best first.

    Plans of every exchange are included, so that the exchanges can be compared.
    """
    fitting = [plan for plan in plans if plan.shared_bytes <= shared_bytes]
    best: dict[tuple[object, ...], Plan] = {}
    for plan in sorted(fitting, key=lambda plan: plan.step_cycles):
        best.setdefault((*plan[:3], plan.exchange), plan)
    ranked = list(best.values())
    ways = dict.fromkeys(plan.exchange for plan in ranked)
    few = [plan for way in ways for plan in [p for p in ranked if p.exchange == way][: most // 4]]
    chosen = [*few, *(plan for plan in ranked if plan not in few)][:most]
    return sorted(chosen, key=lambda plan: plan.step_cycles)


def time_plans(stage: Stage, suite: str, scan: str, sizes: Sizes) -> None:
    """Time a scan, or its backward pass, under the plans of least estimated time."""
    case = f"plan sweep of {scan}, B={sizes.B}, H={sizes.H}, Z={sizes.Z}, T={sizes.T}"
    if stage.device != "cuda" or "cuda" not in runnable(scan.removesuffix("_backward"), "cuda", stage.record):
        stage.record.not_run(case, "cuda", "no CUDA kernels that passed the smoke test")
        return
    sweep(stage, suite, case, scan, sizes, cuda_device(torch.cuda.current_device()))


def sweep(stage: Stage, suite: str, case: str, scan: str, sizes: Sizes, device: Device) -> None:
    """Compare each plan with the first one, time it, and write plans that agree to :data:`FILE`."""
    op = getattr(torch.ops.dmm_fast, f"_launch_{scan}")
    inputs, expected = _inputs(scan, sizes, stage.device), None
    is_rnn, backward = scan.startswith("rnn"), scan.endswith("_backward")
    if is_rnn:
        at, plans = Case(scan, sizes.B, sizes.H), rnn_plans(sizes.B, sizes.H, device, backward)
    else:
        at = Case(scan, sizes.B, sizes.H, sizes.Z)
        plans = combiner_plans(sizes.B, sizes.H, sizes.Z, device, backward)
    for plan in best_of_each_shape(list(plans), device.shared_bytes):
        run = partial(op, **inputs, plan=plan.numbers)
        results = as_tuple(run())
        expected = results if expected is None else expected
        off = max_error(results, expected)
        impl = f"{plan.rows_per_cluster} rows, {plan.rows_per_group} at once, {plan.cluster_size} blocks"
        impl += ", by memory" * (plan.exchange == "memory")
        result = CheckResult(scan, "cuda", f"{case}, {impl}", off, BOUND, off <= BOUND)
        stage.record.correctness(result.as_dict())
        samples = time_calls(run, stage.device, seconds=0.1)
        fields = {"us_per_step": 1e3 * samples.median / sizes.T, "estimated_cycles": plan.step_cycles}
        stage.record.case(suite, case, impl, samples.as_dict(), plan=str(plan), **fields)
        if result.ok:
            add(stage.out / FILE, device.name, [Measurement(at, tuple(plan.numbers), fields["us_per_step"])])


def max_error(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest norm-wise relative error of the outputs; NaN if any of them is."""
    pairs = zip(results, expected, strict=True)
    return float(torch.stack([(result - truth).norm() / truth.norm() for result, truth in pairs]).max())


def _inputs(scan: str, sizes: Sizes, device: str) -> Inputs:
    """Draw the arguments of the op that launches a scan, except for its plan; all rows have full length."""
    launch = OTHERS[f"_launch_{scan}"]
    drawn = draw(launch.arguments, replace(sizes, particles=(1,)), torch.Generator().manual_seed(0))
    inputs: Inputs = {}
    for name, value in map_tensors(drawn, lambda _, tensor: tensor.to(device)).items():
        inputs |= value._asdict() if name == "weights" else {name: value}
    return inputs
