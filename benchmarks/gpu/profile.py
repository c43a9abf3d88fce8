"""Profiles of one step by kernel."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks.gpu.measure import time_calls

STEPS = 5
# Names of templates can be thousands of characters long.
LONGEST_NAME = 120


def profiled(step: Callable[[], object], device: str, trace: Path | None = None) -> dict[str, Any]:
    """The kernels of one step with their count and microseconds, the longest first; means of several steps.

    ``step_us`` is the time of a step without the profiler, ``busy_us`` the sum over its kernels. On a CPU,
    operators take the place of kernels. The timeline is written to ``trace``, gzipped, if it is given.
    """
    on_gpu = device == "cuda"
    step()
    step_us = 1e3 * time_calls(step, device, seconds=0.1).median
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    # The first kernels of a session can be missing, so the first step is not counted.
    counted = schedule(wait=0, warmup=1, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=counted) as seen:
        for _ in range(1 + STEPS):
            step()
            _wait(on_gpu)
            seen.step()
    kernels = _kernels(seen, on_gpu)
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    return {"step_us": step_us, "busy_us": sum(k["us"] for k in kernels), "kernels": kernels}


def _kernels(seen: profile, on_gpu: bool) -> list[dict[str, Any]]:
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    times: defaultdict[str, list[float]] = defaultdict(list)
    for event in seen.events() or ():
        if event.device_type == wanted and not event.is_user_annotation:
            us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            times[event.name[:LONGEST_NAME]].append(us)
    rows = [(sum(each) / STEPS, name, len(each) / STEPS) for name, each in times.items()]
    return [{"name": name, "count": count, "us": us} for us, name, count in sorted(rows)[::-1] if us > 0]


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
