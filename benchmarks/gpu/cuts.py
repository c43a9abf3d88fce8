"""Other ways of cutting the scans up than the planned one: what corrects the planner's estimates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import Verdict
from benchmarks.errors import Sizes
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.stage import Stage
from dmm_fast import native
from dmm_fast.cuda.plan import Plan, combiner_plans, cuda_device, rnn_plans

MOST = 12
BOUND = 1e-5  # another cut adds in another order


def best_of_each_shape(plans: list[Plan], shared_bytes: int, most: int = MOST) -> list[Plan]:
    """The best plan by estimate of each count of rows, rows at once and blocks; the best of those first."""
    fitting = [plan for plan in plans if plan.shared_bytes <= shared_bytes]
    best: dict[tuple[int, ...], Plan] = {}
    for plan in sorted(fitting, key=lambda plan: plan.step_cycles):
        best.setdefault(tuple(plan[:3]), plan)
    return list(best.values())[:most]


def time_cuts(stage: Stage, suite: str, scan: str, sizes: Sizes) -> None:
    """Time the forward of a scan in the most promising cuts, each held to the first one's result."""
    case = f"cuts of {scan}, B={sizes.B}, H={sizes.H}, Z={sizes.Z}, T={sizes.T}"
    if stage.device != "cuda" or not native.cuda_architectures():
        stage.record.not_run(case, "cuda", "the library has no CUDA kernels here")
        return
    device = cuda_device(torch.cuda.current_device())
    plans, run = _rnn(sizes) if scan == "rnn_scan" else _combiner(sizes)
    expected = None
    for plan in best_of_each_shape(plans(device), device.shared_bytes):
        result = run(plan.numbers)
        expected = result if expected is None else expected
        off = float((result - expected).norm() / expected.norm())
        impl = f"{plan.rows_per_cluster} rows, {plan.rows_per_group} at once, {plan.cluster_size} blocks"
        verdict = Verdict(scan, "cuda", f"{case}, {impl}", off, BOUND, off <= BOUND)
        stage.record.correctness(verdict.as_dict())
        samples = time_calls(partial(run, plan.numbers), stage.device)
        told = {"us_per_step": 1e3 * samples.median / sizes.T, "estimated_cycles": plan.step_cycles}
        stage.record.case(suite, case, impl, samples.as_dict(), plan=str(plan), **told)


Run = Callable[[list[int]], Tensor]
Plans = Callable[[Any], list[Plan]]


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, device="cuda")


def _full(sizes: Sizes) -> Tensor:
    return torch.full((sizes.B,), sizes.T, device="cuda")


def _rnn(sizes: Sizes) -> tuple[Plans, Run]:
    x_proj, w_hh = _random(1, sizes.B, sizes.T, sizes.H), _random(sizes.H, sizes.H, scale=sizes.H**-0.5)
    given = x_proj, w_hh, _random(1, sizes.B, sizes.H), _full(sizes), "relu"
    return (
        lambda device: list(rnn_plans(sizes.B, sizes.H, device)),
        lambda numbers: torch.ops.dmm_fast.rnn_scan_steps(*given, numbers),
    )


def _combiner(sizes: Sizes) -> tuple[Plans, Run]:
    B, T, H, Z = sizes.B, sizes.T, sizes.H, sizes.Z
    to, back = H**-0.5, Z**-0.5
    weights = _random(H, Z, scale=back), _random(H), _random(Z, H, scale=to), _random(Z, H, scale=to)
    given = _random(1, B, T, 2 * Z), _random(1, B, T, Z), _random(1, B, Z), *weights, _full(sizes)
    return (
        lambda device: list(combiner_plans(B, H, Z, device)),
        lambda numbers: torch.ops.dmm_fast.combiner_scan_steps(*given, numbers)[0],
    )
