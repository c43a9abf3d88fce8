"""The scans on thread-block clusters, under the emulator, for every kind of plan."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from dmm_fast.cuda import rnn_scan
from dmm_fast.cuda.combiner_tensor import TensorTiling
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.plan import combiner_plans, rnn_plan, rnn_plans
from dmm_fast.cuda.tilings import Tiling
from tests.cases import CASES, Case
from tests.compare import backends_for, compare, eager, error, run_backend
from tests.inputs import build
from tests.plans import Choose, in_shared, shaped, use_plan

__all__ = ["use_plan"]

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
pytest.importorskip("tests.emulated")

RAGGED = Case("use_plan", B=7, T=6, Z=9, H=22, particles=(3,), lengths="zeros", poison="nan", start="rows")
SCANS = ("rnn_scan", "combiner_scan")


SHAPES = [(1, 1, 1), (1, 5, 2), (2, 3, 1), (4, 8, 4), (8, 4, 3), (16, 2, 1), (16, 16, 4)]
ALL = 1 << 20


def of_shape(registers: bool, *shape: int) -> Choose:
    return lambda plan: shaped(*shape)(plan) and (plan.tilings[0].in_registers > 0) == registers


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("registers", [False, True], ids=["", "registers"])
@pytest.mark.parametrize("shared", [ALL, 1, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_plan_agrees_with_float64(
    op: str, shape: tuple[int, ...], shared: int, registers: bool, use_plan: Callable[..., None]
) -> None:
    use_plan(of_shape(registers, *shape), in_shared(shared))
    compare(op, RAGGED, "cuda")


@pytest.mark.parametrize("registers", [False, True], ids=["", "registers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_agrees_with_float64_forward_in_time(
    shape: tuple[int, ...], registers: bool, use_plan: Callable[..., None]
) -> None:
    use_plan(of_shape(registers, *shape), in_shared(1))
    compare("rnn_scan", replace(RAGGED, direction="forward"), "cuda")


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("size", [1, 4])
def test_more_outputs_than_threads(op: str, size: int, use_plan: Callable[..., None]) -> None:
    """With 1030 outputs per block, a thread computes two groups of four."""
    case = Case("very wide", B=3, T=3, Z=3, H=1030, lengths="ragged", poison="nan", nonlinearity="tanh")
    use_plan(of_shape(False, size, 3, 2), in_shared(0))
    compare(op, case, "cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("nonlinearity", "direction"), [("relu", "backward"), ("tanh", "forward")])
@pytest.mark.parametrize(("tiles", "size", "rows", "at_once"), [(1, 2, 8, 8), (2, 1, 12, 8), (1, 4, 16, 16)])
def test_tensor_cores_have_the_accuracy_of_tf32(
    tiles: int,
    size: int,
    rows: int,
    at_once: int,
    nonlinearity: str,
    direction: str,
    tf32: None,
    use_plan: Callable[..., None],
) -> None:
    """Rounding to ten bits errs by at most 2^-11, and errors do not grow over these few steps."""
    use_plan(shaped(size, rows, at_once, tiles))
    case = replace(RAGGED, H=61, B=9, nonlinearity=nonlinearity, direction=direction, name="tensor cores")
    got = run_backend("rnn_scan", build("rnn_scan", case), case, "cuda")
    for name, truth in eager("rnn_scan", case, torch.float64).items():
        off = error(got[name], truth)
        assert 1e-6 < off < 2e-3, (name, off)


def test_large_batches_use_tensor_cores_where_allowed() -> None:
    assert rnn_plan(1024, 512, tf32=True).tilings[0].tensor_tiles
    assert not rnn_plan(1024, 512).tilings[0].tensor_tiles


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("name", ["primes", "particles", "many_steps"])
@pytest.mark.parametrize("size", [1, 8])
def test_reverse_thread_order_with_immediate_delivery(
    op: str, name: str, size: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    use_plan(of_shape(True, size, 2, 1), in_shared(ALL))
    options(reversed=True)
    compare(op, CASES[name], "cuda")


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("H", [1, 22, 31])
def test_blocks_may_be_arbitrarily_late(
    op: str, H: int, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    """Clusters of 16 in which 1, 11 or 16 blocks have units; a block without units does not delay others."""
    use_plan(of_shape(False, 16, 2, 1))
    options(late=True)
    compare(op, replace(RAGGED, H=H), "cuda")


@pytest.mark.parametrize("op", SCANS)
@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize("size", [1, 8])
def test_a_missing_barrier_is_detected(
    op: str, size: int, reversed: bool, use_plan: Callable[..., None], options: Callable[..., None]
) -> None:
    case = replace(CASES["small"], H=40, Z=20)
    use_plan(of_shape(True, size, 2, 1), in_shared(ALL))
    compare(op, case, "cuda")
    options(reversed=reversed, max_barriers=2)  # barriers before the first step
    got = run_backend(op, build(op, case), case, "cuda")
    assert any(value.isnan().any() for value in got.values())


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_out_of_range_lengths_access_no_other_memory(direction: str) -> None:
    """Lengths are checked if that needs no synchronisation; otherwise the kernel clamps them."""
    case = CASES["small"]
    inputs = build("rnn_scan", case)
    x_proj, h_0 = inputs["x_proj"][None], inputs["h_0"].expand(1, case.B, case.H)
    whole, beyond = (torch.tensor(values) for values in ([4, 4, 0], [4, 400, -3]))
    args = x_proj, inputs["w_hh"], h_0
    h = rnn_scan.rnn_scan(*args, beyond, "relu", direction)
    torch.testing.assert_close(h, rnn_scan.rnn_scan(*args, whole, "relu", direction), rtol=0, atol=0)


@pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])
@pytest.mark.parametrize("units", [13, 600])
def test_a_barrier_can_count_the_bytes_of_a_step(units: int, backward: bool) -> None:
    for plan in rnn_plans(64, units, backward=backward, tf32=True, bf16=True):
        assert fits_a_counter(4 * units * plan.rows_per_group)
    for plan in combiner_plans(64, units, 100, backward=backward, tf32=True):
        tile = plan.tilings[-1]
        if isinstance(tile, TensorTiling):  # a part of each block's sums, or of each block's latents
            share, most = tile.share(plan.cluster_size), max(plan.cluster_size, 2)
            assert fits_a_counter(4 * 2 * share * (plan.rows_per_group + 1) * most)
            continue
        assert isinstance(tile, Tiling | LaneTile)
        assert fits_a_counter(4 * tile.outputs * plan.rows_per_group * plan.cluster_size)


def fits_a_counter(count: int) -> bool:
    """True if a barrier can count so many bytes."""
    return count < 1 << 20


def test_all_shapes_are_tested() -> None:
    assert all("cuda" in backends_for(op) for op in SCANS)
