"""rnn_scan of teams of blocks, which exchange through device memory, under the emulator."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from tests.cases import Case
from tests.compare import compare, evaluate, incoming_gradients, run_backend
from tests.inputs import build
from tests.plans import by_words, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pytest.importorskip("tests.emulated")

RAGGED = Case("words", B=7, T=6, H=22, particles=(2,), lengths="zeros", poison="nan", start="rows")
# Rows per team, rows per group, outputs per warp; units.
CUTS = (
    (1, 1, 4, 61),  # two blocks
    (3, 3, 4, 128),  # four, without spare outputs
    (4, 2, 4, 70),  # alternating groups, the last one incomplete
    (3, 3, 5, 130),  # two chunks of inputs, one of them with weights in shared memory
)
each_cut = pytest.mark.parametrize("shape", CUTS, ids=str)
each_order = pytest.mark.parametrize(
    "order", [{}, {"reversed": True}, {"late": True}, {"shuffled": True}], ids=str
)
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])


@each_cut
@each_order
def test_every_plan_agrees_with_float64(
    shape: tuple[int, ...],
    order: dict[str, bool],
    use_plan: Callable[..., None],
    options: Callable[..., None],
) -> None:
    use_plan(by_words(*shape[:3]))
    options(**order)
    compare("rnn_scan", replace(RAGGED, H=shape[-1]), "cuda")


def test_a_thread_may_read_two_words(use_plan: Callable[..., None], options: Callable[..., None]) -> None:
    """Nine blocks of 32 units, and two groups."""
    use_plan(by_words(6, 3, 4))
    options(late=True)
    compare("rnn_scan", replace(RAGGED, H=260, T=3, particles=()), "cuda")


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("shape", CUTS[2:3], ids=str)
def test_tanh_in_both_directions(
    shape: tuple[int, ...], direction: str, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    use_plan(by_words(*shape[:3]))
    options(shuffled=True)
    case = replace(RAGGED, H=shape[-1], nonlinearity="tanh", lengths="ragged", direction=direction)
    compare("rnn_scan", case, "cuda")


@pytest.mark.parametrize(("B", "rows", "at_once"), [(4, 3, 3), (5, 4, 2)])
def test_a_team_may_lack_rows(B: int, rows: int, at_once: int, use_plan: Callable[..., None]) -> None:
    use_plan(by_words(rows, at_once, 4))
    compare("rnn_scan", replace(RAGGED, B=B, H=61, particles=()), "cuda")


@pytest.mark.parametrize("B", [1, 2])
def test_a_batch_may_have_fewer_rows_than_a_group(
    B: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    use_plan(by_words(B, 3, 4))
    options(shuffled=True)
    compare("rnn_scan", replace(RAGGED, B=B, H=61, particles=()), "cuda")


# --- faults -----------------------------------------------------------------------------------------------

FULL = replace(RAGGED, name="whole words", H=61, lengths="full", poison=None, nonlinearity="tanh")


@pytest.mark.parametrize("fault", ["torn", "old_words"])
def test_values_of_another_step_are_detected(
    fault: str, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """Words that become visible in two halves, and words of an earlier launch."""
    use_plan(by_words(4, 2, 4))
    compare("rnn_scan", FULL, "cuda")
    options(fault=fault, shuffled=True, rank=-1)
    got = run_backend("rnn_scan", build("rnn_scan", FULL), FULL, "cuda")
    truth = run_backend("rnn_scan", build("rnn_scan", FULL), FULL, "reference")
    assert any(not torch.allclose(got[name], truth[name], rtol=1e-3) for name in truth)


HANG = Case("hang", B=6, T=7, H=100, start="rows", nonlinearity="tanh")
LENGTHS = [7, 6, 5, 4, 3, 2]  # the first team has the groups [7, 6] and [5, 4]
RANK = 2
Run = Callable[..., re.Match[str]]


@pytest.fixture
def run(use_plan: Callable[..., None], options: Callable[..., None]) -> Run:
    """Run a scan with a fault in one direction; returns the part of the error on the wait that timed out."""
    use_plan(by_words(4, 2, 4))

    def with_fault(backward: bool, **given: Any) -> re.Match[str]:
        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=RANK, **given)
            return incoming_gradients(outputs, HANG)

        inputs = {**build("rnn_scan", HANG), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            options(rank=RANK, **given)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(ops.rnn_scan, inputs, gradients)
        said = re.fullmatch(
            rf"rnn_scan{'_backward' * backward} with plan \[4, 2, 4, 1, 4, 1, 1\]: "
            r"block (?P<block>\d+), rank (?P<rank>\d+) of its team, timed out waiting: group (?P<group>\d+), "
            r"step (?P<step>\d+), rows (?P<rows>\d), thread \d+, flag 0x(?P<flag>[\da-f]+)\. "
            r"A word of that step did not arrive, .* kernel\.",
            str(raised.value),
        )
        assert said, raised.value
        return said

    return with_fault


@each_way
@each_order
@pytest.mark.parametrize(("group", "step"), [(0, 0), (0, 5), (1, 3)])
def test_a_lost_word_is_reported_and_not_confused_with_another(
    backward: bool, order: dict[str, bool], group: int, step: int, run: Run
) -> None:
    """The reader finds zero instead, or the word of two steps before."""
    said = run(backward, fault="lost", group=group, step=step, **order)
    found = int(said["step"])
    assert int(said["flag"], 16) == max(found - 1, 0)
    if not order:  # another wait may time out first if threads are not in step
        rows = 1 if step == 0 and not backward else 2
        assert (int(said["group"]), found, int(said["rows"])) == (group, step, rows)
        assert int(said["rank"]) != RANK


@each_way
def test_without_the_second_buffer_words_are_overwritten_before_they_are_read(
    backward: bool, run: Run
) -> None:
    """A block that is behind waits for a flag that the next one has overwritten."""
    run(backward, fault="one_buffer", late=True)


@each_way
@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(
    backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="silent", **order)
    assert said["group"] == said["step"] == said["flag"] == "0"


@each_way
def test_a_block_may_time_out_early(backward: bool, run: Run) -> None:
    said = run(backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"
