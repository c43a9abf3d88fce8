"""A scan whose blocks do not get what they wait for, or get more, says so: which block, group and step."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from tests.cases import Case
from tests.compare import evaluate, incoming_gradients
from tests.cuts import cut, shaped
from tests.inputs import build

__all__ = ["cut"]

emulator = pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
emulated = pytest.importorskip("tests.emulated")

CASE = Case("hang", B=6, T=7, H=40, Z=9, start="rows", nonlinearity="tanh")
LENGTHS = [7, 6, 5, 4, 3, 2]  # so the first cluster has the groups [7, 6] and [5, 4]
LONGEST = (7, 5)
RANK = 2

each_op = pytest.mark.parametrize("op", ["rnn_scan", "combiner_scan"])
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])
each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)

Run = Callable[..., re.Match[str]]


def exchanged(op: str, backward: bool, group: int) -> int:
    """Count the steps that a group exchanges: the last state of the forward RNN is for no block."""
    return LONGEST[group] - (op == "rnn_scan" and not backward)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, cut: Callable[..., None]) -> Run:
    """Runs a scan of which one direction has a fault: what it says of it."""
    cut(shaped(4, 4, 2))

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
def test_the_block_that_misses_a_store_says_so(
    op: str, backward: bool, group: int, step: int, run: Run
) -> None:
    """The first store of a block is the one to itself."""
    said = run(op, backward, fault="lost", group=group, step=step)
    found = {name: int(said[name]) for name in ("block", "rank", "group", "step")}
    assert found == {"block": RANK, "rank": RANK, "group": group, "step": step}
    # From the end back only the longest row takes part in the first step.
    from_the_end = (op == "rnn_scan") != backward
    assert int(said["rows"]) == (1 if from_the_end and step == 0 else 2)


@each_op
@each_way
@each_order
def test_a_lost_store_is_found_in_any_order(
    op: str, backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(op, backward, fault="lost", group=1, step=2, **order)
    assert int(said["step"]) in (1, 2, 3)


@each_op
@each_way
@each_order
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("back", [1, 2, 4])
def test_a_store_that_comes_twice_is_found_at_the_end(
    op: str, backward: bool, group: int, back: int, order: dict[str, bool], run: Run
) -> None:
    """The next phase of the barrier that counted too much does not end."""
    steps = exchanged(op, backward, group)
    step = steps - back
    said = run(op, backward, fault="doubled", group=group, step=step, **order)
    found = [int(said[name]) for name in ("rank", "group", "step", "rows")]
    assert found == [RANK, group, steps + back % 2, 0]


@each_op
@each_way
def test_a_block_that_gives_up_is_there_for_those_that_have_not(op: str, backward: bool, run: Run) -> None:
    """It gives up while numbers are on their way to it, and ends when no other block has any for it."""
    said = run(op, backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"


@each_op
@each_way
@each_order
def test_a_block_that_gives_nothing_is_missed_at_once(
    op: str, backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(op, backward, fault="silent", **order)
    assert said["group"] == said["step"] == "0"
