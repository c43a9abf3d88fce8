"""combiner_scan on tensor cores, under the emulator: accuracy of tf32, and reports of hangs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.reference import valid_steps
from tests.cases import CASES, Case
from tests.compare import _traces, eager, error, evaluate, incoming_gradients, run_backend
from tests.compiled import calls_of
from tests.inputs import build
from tests.plans import on_tensor_cores, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pytest.importorskip("tests.emulated")

OP = "combiner_scan"
SMALL = 5  # cluster size of the kernel for up to 80 units and 24 latents
RAGGED = Case("tensor", B=7, T=4, Z=18, H=70, lengths="zeros", poison="nan", start="rows", incoming="strided")

each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])


@pytest.fixture(autouse=True)
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def check(case: Case) -> None:
    """Rounding to ten bits errs by at most 2^-11, and errors do not grow over these few steps."""
    inputs = build(OP, case)
    got = run_backend(OP, inputs, case, "cuda")
    for name, truth in eager(OP, case, torch.float64).items():
        off = error(got[name], truth)
        assert 1e-6 < off < 2e-3, (name, off)
    assert _traces(OP, inputs, got) == []


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        (1, {}),
        (5, {"reversed": True}),
        (16, {"late": True}),
        (20, {}),
        (21, {"reversed": True}),
        (20, {"late": True}),
    ],
    ids=str,
)
def test_groups_alternate(
    rows: int, order: dict[str, bool], use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """A cluster has one to three groups, the last with fewer rows; of 20 rows the second cluster has one."""
    use_plan(on_tensor_cores(SMALL, rows))
    options(**order)
    check(RAGGED if rows < 8 else replace(RAGGED, particles=(3,), T=3))


@pytest.mark.parametrize(("size", "H", "Z"), [(3, 27, 69), (2, 270, 4), (5, 80, 24), (5, 3, 9), (5, 11, 1)])
def test_sizes(
    size: int, H: int, Z: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """Two tiles per warp, of outputs or units; the largest sizes; blocks without units or latents."""
    use_plan(on_tensor_cores(size, 3))
    options(late=True)
    check(replace(RAGGED, B=3, T=3, H=H, Z=Z, lengths="ragged"))


@pytest.mark.parametrize("name", ["empty_rows", "particles_2d", "expanded"])
def test_the_table_of_shapes(name: str, use_plan: Callable[..., None]) -> None:
    use_plan(on_tensor_cores(SMALL, 3))
    check(CASES[name])


def test_g_is_zero_past_the_ends(use_plan: Callable[..., None]) -> None:
    use_plan(on_tensor_cores(SMALL, 7))
    forward, _ = calls_of(OP, RAGGED, "cuda")
    *_, g = forward.run()
    lengths = dict(zip(forward.names, forward.args, strict=True))["lengths"]
    past = ~valid_steps(lengths, RAGGED.T).unsqueeze(-1)
    assert not g.masked_select(past).count_nonzero()


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_barrier_is_detected(
    reversed: bool, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    case = replace(CASES["small"], H=40, Z=20)
    use_plan(on_tensor_cores(SMALL, 3))
    check(case)
    options(reversed=reversed, max_barriers=2)  # barriers before the first step
    got = run_backend(OP, build(OP, case), case, "cuda")
    assert any(not error(got[name], truth) < 2e-3 for name, truth in eager(OP, case, torch.float64).items())


# --- hangs ----------------------------------------------------------------------------------------------

CASE = Case("hang", B=6, T=4, H=40, Z=19, start="rows")
LENGTHS = [4, 4, 4, 3, 3, 2]
RANK = 2

Run = Callable[..., re.Match[str]]


@pytest.fixture
def run(options: Callable[..., None], use_plan: Callable[..., None]) -> Run:
    """Run a scan with a fault in one direction; returns the text of its error."""

    def with_fault(backward: bool, **fault: Any) -> re.Match[str]:
        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=RANK, **fault)
            return incoming_gradients(outputs, CASE)

        use_plan(on_tensor_cores(SMALL, 6))
        inputs = {**build(OP, CASE), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            options(rank=RANK, **fault)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(getattr(ops, OP), inputs, gradients)
        said = re.match(
            rf"{OP}{'_backward' * backward} with plan \[6, 6, 5, [\d, ]+\]: block (?P<block>\d+), "
            r"rank (?P<rank>\d+) of its cluster, timed out waiting: group (?P<group>\d+), "
            r"step (?P<step>\d+), parity (?P<parity>\d), rows (?P<rows>\d),",
            str(raised.value),
        )
        assert said, raised.value
        return said

    return with_fault


@each_way
@each_order
@pytest.mark.parametrize("half", [2, 5], ids=["latents", "sums"])
def test_a_lost_store_is_reported(backward: bool, half: int, order: dict[str, bool], run: Run) -> None:
    """A store of the latents of step 1, or of the sums of step 2.

    A block that lacks a sum sends no latents, for which the others begin to wait at the same time.
    """
    said = run(backward, fault="lost", group=0, step=half, **order)
    assert int(said["step"]) in ((half - 1) if order else half, half, half + 1)
    assert (int(said["group"]), int(said["rows"])) == (0, 6)


@each_way
@pytest.mark.parametrize("back", [1, 2], ids=["sums", "latents"])
def test_a_duplicate_store_is_reported_at_the_end(backward: bool, back: int, run: Run) -> None:
    halves = 2 * LENGTHS[0]
    said = run(backward, fault="doubled", group=0, step=halves - back)
    assert [int(said[name]) for name in ("group", "step", "rows")] == [0, halves + back % 2, 0]


@each_way
def test_a_block_that_sends_nothing_is_detected_at_once(backward: bool, run: Run) -> None:
    said = run(backward, fault="silent")
    assert said["group"] == said["step"] == "0"


@each_way
def test_a_block_that_times_out_stays_for_the_others(backward: bool, run: Run) -> None:
    said = run(backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"
