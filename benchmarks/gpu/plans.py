"""Scans under plans of a given exchange, in place of the planner's choice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from dmm_fast.cuda import combiner_scan, rnn_scan
from dmm_fast.cuda.devices import H100, Device
from dmm_fast.cuda.plan import Exchange, Plan, combiner_plans, rnn_plans


@contextmanager
def exchanging(how: Exchange | None) -> Iterator[None]:
    """Make both scans use the plan of least estimated time with the given exchange; None: the planner's plan.

    Raises:
        ValueError: raised by the scan if no plan with this exchange fits the device.
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
    """The plan of least estimated time with an exchange; ``sizes`` arguments precede the device."""
    device: Device = args[sizes] if len(args) > sizes else given.get("device", H100)
    fitting = [
        plan
        for plan in plans(*args, **given)
        if plan.exchange == how and plan.shared_bytes <= device.shared_bytes
    ]
    if not fitting:
        raise ValueError(
            f"exchange: expected one of a plan for {args[:sizes]} that fits this device, got {how}"
        )
    return min(fitting, key=lambda plan: plan.step_cycles)
