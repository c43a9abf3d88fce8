"""rnn_scan in bf16 on tensor cores, under the emulator."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.errors import Results
from dmm_fast import ops, reference
from dmm_fast.cuda import rnn_bf16
from dmm_fast.cuda.plan import Plan, rnn_plan
from dmm_fast.cuda.rnn_bf16 import Bf16Tiling
from tests.cases import Case
from tests.compare import eager, error, evaluate, incoming_gradients, results, run_backend
from tests.inputs import build
from tests.plans import Choose, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pytest.importorskip("tests.emulated")

RAGGED = Case("bf16", B=7, T=5, H=60, particles=(2,), lengths="zeros", poison="nan", start="rows")
# Rows per cluster, warps per block, tiles of rows; units.
CUTS = (
    (7, 2, 2, 60),  # a group of two tiles, one of them without rows
    (14, 4, 1, 92),  # two alternating groups, weights in shared memory, a warp without units
    (5, 1, 1, 92),  # bundles of one warp; six blocks; an incomplete cluster
)
each_cut = pytest.mark.parametrize("shape", CUTS, ids=str)
each_order = pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)


class Product(torch.autograd.Function):
    """``state w_hh^T`` with factors rounded to bf16, forward and backward; exact gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, w_hh: Tensor) -> Tensor:
        ctx.save_for_backward(state, w_hh)
        return rounded(state) @ rounded(w_hh).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        state, w_hh = ctx.saved_tensors
        dw_hh = gradient.flatten(0, -2).mT @ state.expand(*gradient.shape).flatten(0, -2)
        return rounded(gradient) @ rounded(w_hh), dw_hh


def rounded(numbers: Tensor) -> Tensor:
    return numbers.bfloat16().to(numbers.dtype)


def of(rows: int, warps: int, row_tiles: int, *_: int) -> Choose:
    """Select plans of this shape."""

    def is_it(plan: Plan) -> bool:
        tiling = plan.tilings[0]
        is_bf16 = isinstance(tiling, Bf16Tiling) and plan.rows_per_cluster == rows
        return is_bf16 and (tiling.warps, tiling.row_tiles) == (warps, row_tiles)

    return is_it


@pytest.fixture(autouse=True)
def medium(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allow bf16, also for batches as small as those here."""
    monkeypatch.setattr(rnn_bf16, "LEAST_ROWS", 1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], Results]:
    """The reference in float64 with the factors of its products in bf16."""

    def compute(case: Case) -> Results:
        with monkeypatch.context() as changed:
            changed.setattr(reference.F, "linear", Product.apply)
            return results(reference.rnn_scan, case, build("rnn_scan", case, torch.float64))

    return compute


def check(case: Case, expected: Results) -> None:
    """Results have float32 accuracy relative to the rounded reference, bf16 accuracy relative to float64."""
    got = run_backend("rnn_scan", build("rnn_scan", case), case, "cuda")
    exact = eager("rnn_scan", case, torch.float64)
    for name, value in expected.items():
        assert error(got[name], value) < 2e-6, (name, error(got[name], value))
        assert 1e-4 < error(got[name], exact[name]) < 3e-2, (name, error(got[name], exact[name]))
    past_end = ~reference.valid_steps(build("rnn_scan", case)["lengths"], case.T)
    for name in ("output 0", "gradient of x_proj"):
        assert not got[name].masked_select(past_end.unsqueeze(-1)).count_nonzero()


@each_cut
@each_order
def test_every_plan_agrees_with_rounded_products(
    shape: tuple[int, ...],
    order: dict[str, bool],
    use_plan: Callable[..., None],
    options: Callable[..., None],
    truth: Callable[[Case], Results],
) -> None:
    use_plan(of(*shape))
    options(**order)
    case = replace(RAGGED, H=shape[-1])
    check(case, truth(case))


@pytest.mark.parametrize(
    ("nonlinearity", "direction", "changed"),
    [
        ("tanh", "backward", {}),
        ("relu", "forward", {"start": "one", "particles": ()}),
        ("tanh", "forward", {"layout": "feature_major"}),
        ("relu", "backward", {"layout": "sliced", "incoming": "expanded"}),
    ],
)
def test_other_networks_and_layouts(
    nonlinearity: str,
    direction: str,
    changed: dict[str, Any],
    use_plan: Callable[..., None],
    truth: Callable[[Case], Results],
) -> None:
    """Units that a lane cannot read in one load of four are copied."""
    use_plan(of(*CUTS[2]))
    case = replace(RAGGED, nonlinearity=nonlinearity, direction=direction, **changed)
    check(case, truth(case))


def test_only_medium_precision_allows_bf16() -> None:
    def is_bf16(plan: Plan) -> bool:
        return isinstance(plan.tilings[0], Bf16Tiling)

    assert is_bf16(rnn_plan(512, 88, tf32=True, bf16=True))
    assert not is_bf16(rnn_plan(512, 88, tf32=True))
    assert not is_bf16(rnn_plan(512, 88))
    assert not is_bf16(rnn_plan(512, 90, tf32=True, bf16=True))  # not a multiple of four
    case = replace(RAGGED, B=130, T=2, H=88, particles=(), poison="")
    exact = eager("rnn_scan", case, torch.float64)["output 0"]
    off = {}
    for precision in ("medium", "highest"):
        torch.set_float32_matmul_precision(precision)
        off[precision] = error(
            run_backend("rnn_scan", build("rnn_scan", case), case, "cuda")["output 0"], exact
        )
    assert off["highest"] < 1e-6 < 1e-4 < off["medium"]


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_barrier_is_detected(
    reversed: bool,
    use_plan: Callable[..., None],
    options: Callable[..., None],
    truth: Callable[[Case], Results],
) -> None:
    case = replace(RAGGED, H=92, lengths="full", poison="")
    use_plan(of(*CUTS[1]))
    options(reversed=reversed, max_barriers=2)  # barriers before the first step
    got = run_backend("rnn_scan", build("rnn_scan", case), case, "cuda")
    assert any(
        not torch.allclose(got[name].double(), value, atol=1e-3) for name, value in truth(case).items()
    )


HANG = Case("hang", B=16, T=6, H=92, start="rows", nonlinearity="tanh")
LONGEST = (6, 5)  # of the two groups
Fail = Callable[..., re.Match[str]]


@pytest.fixture
def fail(use_plan: Callable[..., None], options: Callable[..., None]) -> Fail:
    """Run a scan with a fault in one direction; returns the part of the error on the wait that timed out."""
    use_plan(of(16, 4, 1))

    def with_fault(backward: bool, **given: Any) -> re.Match[str]:
        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=1, **given)
            return incoming_gradients(outputs, HANG)

        inputs = {**build("rnn_scan", HANG), "lengths": torch.tensor([6] * 8 + [5] * 8)}
        if not backward:
            options(rank=1, **given)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(ops.rnn_scan, inputs, gradients)
        said = re.match(
            rf"rnn_scan{'_backward' * backward} with plan \[16, 8, 2, 4, 2, 3, 1, 1\]: block \d, "
            r"rank (?P<rank>\d) of its cluster, timed out waiting: "
            r"group (?P<group>\d), step (?P<step>\d), parity \d, rows (?P<rows>\d), ",
            str(raised.value),
        )
        assert said, raised.value
        return said

    return with_fault


each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])


@each_way
@pytest.mark.parametrize(("group", "step"), [(0, 3), (1, 0)])
def test_the_block_that_misses_a_store_is_reported(backward: bool, group: int, step: int, fail: Fail) -> None:
    said = fail(backward, fault="lost", group=group, step=step)
    assert said["rank"] == "0"  # a block stores only to the other block
    assert (int(said["group"]), int(said["step"]), said["rows"]) == (group, step, "8")


@each_way
@pytest.mark.parametrize("back", [1, 2])
def test_a_duplicate_store_is_reported_at_the_end(backward: bool, back: int, fail: Fail) -> None:
    steps = LONGEST[1] - (not backward)
    said = fail(backward, fault="doubled", group=1, step=steps - back)
    assert (said["group"], int(said["step"]), said["rows"]) == ("1", steps + back % 2, "0")


@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(order: dict[str, bool], fail: Fail) -> None:
    said = fail(False, fault="silent", **order)
    assert (said["group"], said["step"]) == ("0", "0")


def test_a_block_that_times_out_stays_for_the_others(fail: Fail) -> None:
    """It times out while stores to it are in flight, and exits when no other block will store to it."""
    said = fail(False, fault="early_timeout")
    assert (said["group"], said["step"]) == ("0", "0")
