"""rnn_scan with outputs split over warps, under the emulator."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.cuda.plan import Plan
from dmm_fast.cuda.rnn_plans import WarpTiling
from tests.cases import Case
from tests.compare import compare, evaluate, incoming_gradients, run_backend
from tests.inputs import build
from tests.plans import Choose, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pytest.importorskip("tests.emulated")

RAGGED = Case("warps", B=7, T=6, H=22, particles=(2,), lengths="zeros", poison="nan", start="rows")
# Rows per cluster, rows per group, outputs per warp; units.
CUTS = (
    (1, 1, 4, 3),  # one block, with warps that have no units
    (1, 1, 4, 128),  # every output is a unit
    (3, 3, 4, 61),
    (4, 2, 4, 70),  # alternating groups
    (3, 3, 5, 130),  # two chunks of inputs, one of them with weights in shared memory
    (6, 4, 4, 200),  # an incomplete group
)
each_cut = pytest.mark.parametrize("shape", CUTS, ids=str)
each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])


def of(rows: int, at_once: int, outputs: int, units: int = 0) -> Choose:
    """Select plans of this shape."""

    def is_it(plan: Plan) -> bool:
        tiling = plan.tilings[0]
        return plan[:2] == (rows, at_once) and isinstance(tiling, WarpTiling) and tiling.outputs == outputs

    return is_it


@each_cut
@each_order
def test_every_plan_agrees_with_float64(
    shape: tuple[int, ...],
    order: dict[str, bool],
    use_plan: Callable[..., None],
    options: Callable[..., None],
) -> None:
    use_plan(of(*shape))
    options(**order)
    compare("rnn_scan", replace(RAGGED, H=shape[-1]), "cuda")


@each_cut
@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_every_plan_agrees_with_float64_for_tanh(
    direction: str, shape: tuple[int, ...], use_plan: Callable[..., None]
) -> None:
    use_plan(of(*shape))
    case = replace(RAGGED, H=shape[-1], nonlinearity="tanh", lengths="ragged", direction=direction)
    compare("rnn_scan", case, "cuda")


def test_a_warp_may_send_to_two_blocks_in_two_stores(
    use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """Eight warps store to eleven other blocks; a lane stores the five rows of a group in two stores."""
    use_plan(of(7, 5, 4))
    options(late=True)
    compare("rnn_scan", replace(RAGGED, H=370, T=2, particles=(), lengths="full", poison=""), "cuda")


@pytest.mark.parametrize(("B", "rows", "at_once"), [(4, 3, 3), (5, 3, 3), (5, 4, 2), (7, 4, 2)])
def test_a_cluster_may_lack_rows(B: int, rows: int, at_once: int, use_plan: Callable[..., None]) -> None:
    use_plan(of(rows, at_once, 4))
    compare("rnn_scan", replace(RAGGED, B=B, H=61, particles=()), "cuda")


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_wait_is_detected(
    reversed: bool, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    case = replace(RAGGED, H=61, lengths="full", poison=None)
    use_plan(of(3, 2, 4))
    compare("rnn_scan", case, "cuda")
    options(reversed=reversed, max_barriers=2)  # barriers before the first step
    got = run_backend("rnn_scan", build("rnn_scan", case), case, "cuda")
    truth = run_backend("rnn_scan", build("rnn_scan", case), case, "reference")
    assert any(not torch.allclose(got[name], truth[name]) for name in truth)


HANG = Case("hang", B=6, T=7, H=100, start="rows", nonlinearity="tanh")
LENGTHS = [7, 6, 5, 4, 3, 2]  # the first cluster has the groups [7, 6] and [5]
LONGEST, RANK = (7, 5), 2
Fail = Callable[..., str]
Run = Callable[..., re.Match[str]]


@pytest.fixture
def fail(use_plan: Callable[..., None], options: Callable[..., None]) -> Fail:
    """Run a scan with a fault in one direction; returns the text of its error."""
    use_plan(of(3, 2, 4))

    def with_fault(backward: bool, **given: Any) -> str:
        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=RANK, **given)
            return incoming_gradients(outputs, HANG)

        inputs = {**build("rnn_scan", HANG), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            options(rank=RANK, **given)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(ops.rnn_scan, inputs, gradients)
        return str(raised.value)

    return with_fault


@pytest.fixture
def run(fail: Fail) -> Run:
    """As ``fail``, but returns the part of the text on the wait that timed out."""

    def with_fault(backward: bool, **given: Any) -> re.Match[str]:
        text = fail(backward, **given)
        said = re.match(
            rf"rnn_scan{'_backward' * backward} with plan \[3, 2, 4, 1, 4, 1\]: "
            r"block (?P<block>\d+), rank (?P<rank>\d+) of its cluster, timed out waiting: "
            r"group (?P<group>\d+), step (?P<step>\d+), parity (?P<parity>\d), rows (?P<rows>\d), ",
            text,
        )
        assert said, text
        assert int(said["parity"]) == int(said["step"]) >> 1 & 1
        return said

    return with_fault


@each_way
@pytest.mark.parametrize(("group", "step"), [(0, 0), (0, 5), (1, 1), (1, 3)])
def test_the_block_that_misses_a_store_is_reported(backward: bool, group: int, step: int, run: Run) -> None:
    """Any block of the cluster may be reported, as lanes do not leave a shuffle in order."""
    said = run(backward, fault="lost", group=group, step=step)
    assert int(said["block"]) == int(said["rank"])  # of the first cluster
    assert (int(said["group"]), int(said["step"])) == (group, step)
    assert int(said["rows"]) == (1 if group == 1 or (step == 0 and not backward) else 2)


@each_way
@each_order
def test_a_lost_store_is_reported_in_any_order_of_threads(
    backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="lost", group=1, step=2, **order)
    assert int(said["step"]) in (1, 2, 3)


@each_way
@each_order
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("back", [1, 2, 4])
def test_a_duplicate_store_is_reported_at_the_end(
    backward: bool, order: dict[str, bool], group: int, back: int, fail: Fail
) -> None:
    """The next phase of the barrier with surplus bytes does not complete, except for the last phase.

    That one completes early, by the bytes of one store of a warp.
    """
    steps = LONGEST[group] - (not backward)
    text = fail(backward, fault="doubled", group=group, step=steps - back, **order)
    found = f"group {group}, step {steps + back % 2}, parity {(steps + back % 2) // 2 % 2}, rows 0, "
    assert found in text or text == "a store comes to a block that has ended"


@each_way
def test_a_block_that_times_out_stays_for_the_others(backward: bool, run: Run) -> None:
    """It times out while stores to it are in flight, and exits when no other block will store to it."""
    said = run(backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"


@each_way
@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(
    backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="silent", **order)
    assert said["group"] == said["step"] == "0"
