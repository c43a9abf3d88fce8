"""combiner_scan one row at a time, under the emulator: results of each kernel, and reports of hangs."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.reference import valid_steps
from tests.cases import CASES, Case
from tests.compare import compare, evaluate, incoming_gradients, run_backend
from tests.compiled import calls_of
from tests.inputs import build
from tests.plans import Choose, by_lanes, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
emulated = pytest.importorskip("tests.emulated")

OP = "combiner_scan"
RAGGED = Case("rows", B=7, T=6, Z=9, H=22, particles=(3,), lengths="zeros", poison="nan", start="rows")
FORWARD, BACKWARD = emulated.kernels("combiner_rows"), emulated.kernels("combiner_rows_backward")
KERNELS = range(len(FORWARD))

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda i: "-".join(map(str, FORWARD[i])))
each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])


def of_kernel(kernel: int, groups: int) -> Choose:
    """Plans for one of the kernels, forward and backward; with two rows per group, the last group has one."""
    size, at_once = FORWARD[kernel][0], FORWARD[kernel][-1]
    rows = groups * at_once - (at_once > 1 and groups > 1)

    def is_it(plan: Any) -> bool:
        if not by_lanes(size, rows, at_once)(plan):
            return False
        tiles = (n for tile in plan.tilings for n in (tile.group_outputs, tile.lane_inputs))
        return (size, *tiles, at_once) in (FORWARD[kernel], BACKWARD[kernel])

    return is_it


def test_a_kernel_forward_has_one_backward() -> None:
    ends = [[(sizes[0], sizes[-1]) for sizes in way] for way in (FORWARD, BACKWARD)]
    assert ends[0] == ends[1]


@each_kernel
@pytest.mark.parametrize(
    ("groups", "order"), [(1, {}), (2, {"reversed": True}), (3, {"late": True}), (4, {})], ids=str
)
def test_every_kernel_agrees_with_float64(
    kernel: int,
    groups: int,
    order: dict[str, bool],
    use_plan: Callable[..., None],
    options: Callable[..., None],
) -> None:
    use_plan(of_kernel(kernel, groups))
    options(**order)
    compare(OP, RAGGED, "cuda")


@each_kernel
def test_every_kernel_supports_its_largest_sizes(kernel: int, use_plan: Callable[..., None]) -> None:
    size, units, inputs, outputs, sums, at_once = FORWARD[kernel]
    H, Z = size * min(32 * units, 8 * sums), min(8 * inputs, 16 * outputs, 4 * BACKWARD[kernel][2])
    use_plan(of_kernel(kernel, 1))
    compare(OP, Case("largest", B=at_once, T=2, Z=Z, H=H, start="rows"), "cuda")


@pytest.mark.parametrize("name", ["primes", "particles", "many_steps"])
def test_groups_of_rows_alternate(name: str, use_plan: Callable[..., None]) -> None:
    use_plan(of_kernel(1, 2 if name != "primes" else 3))
    compare(OP, CASES[name], "cuda")


@each_kernel
def test_groups_of_equal_length(
    kernel: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """All rows have full length, so that a missing row would affect the results of the first."""
    use_plan(of_kernel(kernel, 3))
    options(late=True)
    compare(OP, replace(RAGGED, B=6, T=4, particles=(), lengths="full", poison=""), "cuda")


@each_kernel
def test_g_is_zero_past_the_ends(kernel: int, use_plan: Callable[..., None]) -> None:
    """Also for a row that ends before the other one of its group."""
    use_plan(of_kernel(kernel, 2))
    forward, _ = calls_of(OP, RAGGED, "cuda")
    *_, g = forward.run()
    lengths = dict(zip(forward.names, forward.args, strict=True))["lengths"]
    past = ~valid_steps(lengths, RAGGED.T).unsqueeze(-1)
    assert not g.masked_select(past).count_nonzero()


@pytest.mark.parametrize("H", [1, 11, 31])
def test_blocks_without_units_return_zeros_and_may_be_late(
    H: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    use_plan(of_kernel(3, 1))
    options(late=True)
    compare(OP, replace(RAGGED, H=H), "cuda")


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_barrier_is_detected(
    reversed: bool, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    case = replace(CASES["small"], H=40, Z=20)
    use_plan(of_kernel(1, 1))
    compare(OP, case, "cuda")
    options(reversed=reversed, max_barriers=8)  # barriers before the first step
    got = run_backend(OP, build(OP, case), case, "cuda")
    with ops.use_backend("reference"):
        expected = run_backend(OP, build(OP, case), case, "reference")
    assert any(not torch.allclose(got[name], expected[name], rtol=1e-3) for name in expected)


# --- hangs ----------------------------------------------------------------------------------------------

CASE = Case("hang", B=6, T=7, H=40, Z=9, start="rows")
LENGTHS = [7, 6, 5, 4, 3, 2]  # the first cluster has rows of 7 and 6 steps
RANK = 2

Run = Callable[..., re.Match[str]]


@pytest.fixture
def run(options: Callable[..., None], use_plan: Callable[..., None]) -> Run:
    """Run a scan with a fault in one direction; returns the text of its error."""
    use_plan(of_kernel(1, 2))

    def with_fault(backward: bool, **fault: Any) -> re.Match[str]:
        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=RANK, **fault)
            return incoming_gradients(outputs, CASE)

        inputs = {**build(OP, CASE), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            options(rank=RANK, **fault)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(getattr(ops, OP), inputs, gradients)
        said = re.match(
            rf"{OP}{'_backward' * backward} with plan \[2, 1, 5, [\d, ]+\]: block (?P<block>\d+), "
            r"rank (?P<rank>\d+) of its cluster, timed out waiting: group (?P<group>\d+), "
            r"step (?P<step>\d+), parity (?P<parity>\d), rows (?P<rows>\d),",
            str(raised.value),
        )
        assert said, raised.value
        return said

    return with_fault


@each_way
@each_order
@pytest.mark.parametrize(("group", "step"), [(0, 5), (1, 1)])
def test_a_lost_store_is_reported(
    backward: bool, group: int, step: int, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="lost", group=group, step=step, **order)
    if not order:  # the first store of a block is the one to itself
        found = {name: int(said[name]) for name in ("block", "rank", "group", "step", "rows")}
        assert found == {"block": RANK, "rank": RANK, "group": group, "step": step, "rows": 1}


@each_way
@each_order
@pytest.mark.parametrize(("group", "back"), [(0, 1), (1, 2)])
def test_a_duplicate_store_is_reported_at_the_end(
    backward: bool, group: int, back: int, order: dict[str, bool], run: Run
) -> None:
    steps = LENGTHS[group]
    said = run(backward, fault="doubled", group=group, step=steps - back, **order)
    found = [int(said[name]) for name in ("group", "step", "rows")]
    assert found == [group, steps + back % 2, 0]


@each_way
@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(
    backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="silent", **order)
    assert said["group"] == said["step"] == "0"


@each_way
def test_a_block_that_times_out_stays_for_the_others(backward: bool, run: Run) -> None:
    said = run(backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"
