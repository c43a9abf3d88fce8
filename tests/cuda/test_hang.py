"""Reports of scans with lost or duplicate stores: block, group and step."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from tests.cases import Case
from tests.compare import evaluate, incoming_gradients
from tests.inputs import build
from tests.plans import shaped, use_plan

__all__ = ["use_plan"]

emulator = pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
emulated = pytest.importorskip("tests.emulated")

CASE = Case("hang", B=6, T=7, H=40, Z=9, start="rows", nonlinearity="tanh")
LENGTHS = [7, 6, 5, 4, 3, 2]  # the first cluster has the groups [7, 6] and [5, 4]
LONGEST = (7, 5)
RANK = 2

each_op = pytest.mark.parametrize("op", ["rnn_scan", "combiner_scan"])
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])
each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)

Run = Callable[..., re.Match[str]]


def exchanged(op: str, backward: bool, group: int) -> int:
    """The number of steps with an exchange in a group; the last state of the forward RNN is not exchanged."""
    return LONGEST[group] - (op == "rnn_scan" and not backward)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, use_plan: Callable[..., None]) -> Run:
    """Run a scan with a fault in one direction; returns the text of its error."""
    use_plan(shaped(4, 4, 2))

    def with_fault(op: str, backward: bool, **options: Any) -> re.Match[str]:
        def begin() -> None:
            monkeypatch.setattr(emulated, "options", emulator.Options(rank=RANK, **options))

        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            begin()
            return incoming_gradients(outputs, CASE)

        inputs = {**build(op, CASE), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            begin()
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(getattr(ops, op), inputs, gradients)
        said = re.fullmatch(
            rf"{op}{'_backward' * backward} with plan \[4, 2, 4, [\d, ]+\]: block (?P<block>\d+), "
            r"rank (?P<rank>\d+) of its cluster, timed out waiting: "
            r"group (?P<group>\d+), step (?P<step>\d+), parity (?P<parity>\d), rows (?P<rows>\d), "
            r"thread \d+, barrier 0x[\da-f]+\. Fewer or more bytes .* wrong; .* kernel\.",
            str(raised.value),
        )
        assert said, raised.value
        assert int(said["parity"]) == int(said["step"]) >> 1 & 1
        return said

    return with_fault


@each_op
@each_way
@pytest.mark.parametrize(("group", "step"), [(0, 0), (0, 5), (1, 1), (1, 3)])
def test_the_block_that_misses_a_store_is_reported(
    op: str, backward: bool, group: int, step: int, run: Run
) -> None:
    """The first store of a block is the one to itself."""
    said = run(op, backward, fault="lost", group=group, step=step)
    found = {name: int(said[name]) for name in ("block", "rank", "group", "step")}
    assert found == {"block": RANK, "rank": RANK, "group": group, "step": step}
    # In reverse time, only the longest row is part of the first step.
    from_the_end = (op == "rnn_scan") != backward
    assert int(said["rows"]) == (1 if from_the_end and step == 0 else 2)


@each_op
@each_way
@each_order
def test_a_lost_store_is_reported_in_any_order_of_threads(
    op: str, backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(op, backward, fault="lost", group=1, step=2, **order)
    assert int(said["step"]) in (1, 2, 3)


@each_op
@each_way
@each_order
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("back", [1, 2, 4])
def test_a_duplicate_store_is_reported_at_the_end(
    op: str, backward: bool, group: int, back: int, order: dict[str, bool], run: Run
) -> None:
    """The next phase of the barrier with surplus bytes does not complete."""
    steps = exchanged(op, backward, group)
    step = steps - back
    said = run(op, backward, fault="doubled", group=group, step=step, **order)
    found = [int(said[name]) for name in ("rank", "group", "step", "rows")]
    assert found == [RANK, group, steps + back % 2, 0]


@each_op
@each_way
def test_a_block_that_times_out_stays_for_the_others(op: str, backward: bool, run: Run) -> None:
    """It times out while stores to it are in flight, and exits when no other block will store to it."""
    said = run(op, backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"


@each_op
@each_way
@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(
    op: str, backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(op, backward, fault="silent", **order)
    assert said["group"] == said["step"] == "0"
