"""Scans by plans of one kind, whatever the planner would choose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from dmm_fast.cuda import combiner_scan, rnn_scan
from dmm_fast.cuda.devices import H100, Device
from dmm_fast.cuda.plan import Exchange, Plan, combiner_plans, rnn_plans


@contextmanager
def exchanging(how: Exchange | None) -> Iterator[None]:
    """Have both scans take the fastest plan, by estimate, whose blocks exchange so; None: the planner's own.

    Raises:
        ValueError: in the scan, where none of these plans fits the device.
    """
    rnn, combiner = vars(rnn_scan), vars(combiner_scan)
    before = rnn["rnn_plan"], combiner["combiner_plan"]
    if how is not None:
        rnn["rnn_plan"] = partial(fastest, rnn_plans, 2, how)
        combiner["combiner_plan"] = partial(fastest, combiner_plans, 3, how)
    try:
        yield
    finally:
        rnn["rnn_plan"], combiner["combiner_plan"] = before


def fastest(
    plans: Callable[..., Iterator[Plan]], sizes: int, how: Exchange, *args: Any, **given: Any
) -> Plan:
    """The plan of least estimated time whose blocks exchange so; the device follows so many sizes."""
    device: Device = args[sizes] if len(args) > sizes else given.get("device", H100)
    fitting = [
        plan
        for plan in plans(*args, **given)
        if plan.exchange == how and plan.shared_bytes <= device.shared_bytes
    ]
    if not fitting:
        raise ValueError(
            f"exchange: expected one that a plan for {args[:sizes]} has on this device, got {how}"
        )
    return min(fitting, key=lambda plan: plan.step_cycles)
