"""Selection of the plans that tests run the scans with, under the emulator or on a GPU."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from dmm_fast.cuda import combiner_scan, rnn_scan
from dmm_fast.cuda.combiner_tensor import TensorTiling
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.plan import Plan, combiner_plans, rnn_plans
from dmm_fast.cuda.rnn_plans import WarpTiling
from dmm_fast.cuda.tilings import Tiling

Choose = Callable[[Plan], bool]
Change = Callable[[Plan], Plan]


def shaped(size: int, rows: int, at_once: int, tensor_tiles: int = 0) -> Choose:
    """Select plans of clusters of ``size`` blocks by their rows and rows per group."""

    def is_it(plan: Plan) -> bool:
        tiling = plan.tilings[0]
        is_shape = plan[:3] == (rows, at_once, size) and isinstance(tiling, Tiling)
        return is_shape and tiling.tensor_tiles == tensor_tiles

    return is_it


def by_words(rows: int, at_once: int, outputs: int) -> Choose:
    """Select plans of teams by their rows, rows per group and outputs per warp."""

    def is_it(plan: Plan) -> bool:
        tiling = plan.tilings[0]
        is_team = plan.exchange == "memory" and isinstance(tiling, WarpTiling)
        return is_team and plan[:2] == (rows, at_once) and tiling.outputs == outputs

    return is_it


def by_lanes(size: int, rows: int, at_once: int = 1, kept: int = 0) -> Choose:
    """Select plans of lane tiles with at least ``kept`` weights per thread in registers."""

    def is_it(plan: Plan) -> bool:
        by_lanes = isinstance(plan.tilings[0], LaneTile) and plan[:3] == (rows, at_once, size)
        return by_lanes and sum(tile.kept for tile in plan.tilings) >= kept

    return is_it


def on_tensor_cores(size: int, rows: int) -> Choose:
    """Select plans of combiner_scan on tensor cores by the rows and the size of a cluster."""

    def is_it(plan: Plan) -> bool:
        shape = plan.rows_per_cluster, plan.cluster_size
        return isinstance(plan.tilings[0], TensorTiling) and shape == (rows, size)

    return is_it


def keeping(registers: tuple[int, ...], choose: Choose) -> Choose:
    """Restrict ``choose`` to plans with these numbers of quads of each weight in registers."""
    return lambda plan: choose(plan) and tuple(t.in_registers for t in plan.tilings) == registers


def in_shared(most: int) -> Change:
    """Limit the quads of each weight in shared memory to ``most``."""

    def change(plan: Plan) -> Plan:
        kept = (
            t._replace(in_shared=0 if t.tensor_tiles else min(most, t.quads - t.in_registers))
            for t in plan.tilings
            if isinstance(t, Tiling)
        )
        return plan._replace(tilings=tuple(kept))

    return change


@pytest.fixture
def use_plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[Choose, Change], None]:
    """Make both scans use the selected plan, forward and backward, after applying ``change`` to it.

    The first selected plan is used, or with ``room`` the one of most rows that fits this shared memory.
    """

    def force(choose: Choose, change: Change = lambda plan: plan, room: int | None = None) -> None:
        def chosen(plans: Callable[..., Iterator[Plan]], *sizes: Any, **how: bool) -> Plan:
            found = (plan for plan in plans(*sizes, **how) if choose(plan))
            if room is None:
                return change(next(found))
            fitting = (plan for plan in found if plan.shared_bytes <= room)
            return change(max(fitting, key=lambda plan: plan.rows_per_cluster))

        monkeypatch.setattr(rnn_scan, "rnn_plan", partial(chosen, rnn_plans))
        monkeypatch.setattr(combiner_scan, "combiner_plan", partial(chosen, combiner_plans))

    return force
