"""The scans on the hardware, under plans for every kernel."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from dmm_fast import _extension
from dmm_fast.cuda.devices import cuda_device
from dmm_fast.cuda.plan import Plan, rnn_plans
from dmm_fast.cuda.rnn_bf16 import Bf16Tiling
from dmm_fast.cuda.rnn_plans import CHUNK, WarpTiling
from dmm_fast.cuda.scan_kernels import kernels
from tests.cases import Case
from tests.compare import compare, eager, error, run_backend
from tests.inputs import build
from tests.plans import Choose, by_lanes, in_shared, keeping, on_tensor_cores, shaped, use_plan

__all__ = ["use_plan"]

pytestmark = pytest.mark.skipif(not _extension.cuda_architectures(), reason="built without CUDA kernels")
KINDS = ("rnn_scan", "rnn_scan_warps", "rnn_scan_words", "rnn_scan_bf16", "combiner_scan")
RNN, BY_WARPS, BY_WORDS, IN_BF16, COMBINER = (() if _extension.missing else kernels(kind) for kind in KINDS)

RAGGED = Case("hardware", B=23, T=9, Z=50, H=300, particles=(2,), lengths="zeros", poison="nan", start="rows")
SHAPES = [(1, 1, 1), (2, 3, 1), (4, 8, 4), (8, 4, 2), (16, 3, 1), (16, 8, 4)]
each_direction = pytest.mark.parametrize("direction", ["backward", "forward"])
each_shape = pytest.mark.parametrize("shape", SHAPES)


def takes_clusters(size: int) -> None:
    if size > 1 and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters take compute capability 9.0")


@each_direction
@each_shape
@pytest.mark.parametrize("registers", RNN)
def test_rnn_scan(
    shape: tuple[int, int, int], registers: tuple[int], direction: str, use_plan: Callable[..., None]
) -> None:
    takes_clusters(shape[0])
    use_plan(keeping(registers, shaped(*shape)), in_shared(2))
    compare("rnn_scan", replace(RAGGED, direction=direction), "cuda", device="cuda")


@each_direction
@pytest.mark.parametrize("fewer", [1, CHUNK - 3])
@pytest.mark.parametrize("kernel", BY_WARPS, ids=str)
def test_rnn_scan_by_warps(
    kernel: tuple[int, ...], fewer: int, direction: str, use_plan: Callable[..., None]
) -> None:
    chunks, outputs, *_ = kernel
    units = CHUNK * chunks - fewer
    takes_clusters(-(-units // (8 * outputs)))
    use_plan(of_warps(kernel, by_memory=False), room=cuda_device(torch.cuda.current_device()).shared_bytes)
    case = replace(RAGGED, H=units, direction=direction, name=f"by warps {units}")
    compare("rnn_scan", case, "cuda", device="cuda")


@each_direction
@pytest.mark.parametrize("fewer", [1, CHUNK - 3])
@pytest.mark.parametrize("kernel", BY_WORDS, ids=str)
def test_rnn_scan_by_words(
    kernel: tuple[int, ...], fewer: int, direction: str, use_plan: Callable[..., None]
) -> None:
    """Through device memory, in several launches if there are more teams than fit."""
    units, device = CHUNK * kernel[0] - fewer, cuda_device(torch.cuda.current_device())
    is_it = of_warps(kernel, by_memory=True)
    fitting = (plan for plan in rnn_plans(46, units, device, backward=True) if is_it(plan))
    if not any(plan.shared_bytes <= device.shared_bytes for plan in fitting):
        pytest.skip("fewer multiprocessors, or less shared memory, than a team takes")
    use_plan(is_it, room=device.shared_bytes)
    case = replace(RAGGED, H=units, direction=direction, name=f"by words {units}")
    compare("rnn_scan", case, "cuda", device="cuda")


def of_warps(kernel: tuple[int, ...], by_memory: bool) -> Choose:
    """Plans of a kernel, with the largest number of groups of rows that fits a block."""
    chunks, outputs, kept, at_once, several = kernel
    rows = (2 * at_once + 1, at_once + 1, at_once) if several else (at_once,)
    tilings = (WarpTiling(chunks, outputs, kept),)

    def is_it(plan: Plan) -> bool:
        is_way = (plan.exchange == "memory") == by_memory
        return is_way and plan[0] in rows and plan[1] == at_once and plan.tilings == tilings

    return is_it


@each_shape
@pytest.mark.parametrize("registers", COMBINER)
def test_combiner_scan(
    shape: tuple[int, int, int], registers: tuple[int, int], use_plan: Callable[..., None]
) -> None:
    takes_clusters(shape[0])

    def keeps(plan: Plan) -> bool:  # forward the first weight is the smaller, backward the second
        return keeping(registers, shaped(*shape))(plan) or keeping(registers[::-1], shaped(*shape))(plan)

    use_plan(keeps, in_shared(1))
    compare("combiner_scan", RAGGED, "cuda", device="cuda")


@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (2, 1), (5, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize(("size", "kept", "units"), [(1, 0, 120), (5, 0, 300), (8, 0, 300), (8, 190, 300)])
def test_combiner_scan_by_lanes(
    size: int, kept: int, units: int, rows: int, at_once: int, use_plan: Callable[..., None]
) -> None:
    takes_clusters(size)
    if kept and at_once > 1:
        pytest.skip("there is no kernel forward")
    use_plan(by_lanes(size, rows, at_once, kept))
    compare("combiner_scan", replace(RAGGED, H=units, name=f"by lanes {units}"), "cuda", device="cuda")


@pytest.mark.parametrize(("rows", "at_once"), [(1, 1), (2, 1), (5, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize("units", [120, 300, 600])
def test_combiner_scan_by_words(units: int, rows: int, at_once: int, use_plan: Callable[..., None]) -> None:
    device = cuda_device(torch.cuda.current_device())

    def is_it(plan: Plan) -> bool:
        return plan.exchange == "memory" and plan[0] <= rows and plan[1] == at_once

    use_plan(is_it, room=device.shared_bytes)
    compare("combiner_scan", replace(RAGGED, H=units, name=f"by words {units}"), "cuda", device="cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("tiles", "units"), [(1, 120), (2, 300), (3, 600)])
@pytest.mark.parametrize("shape", [(16, 16, 8), (16, 16, 16)])
def test_tensor_cores(
    tiles: int, units: int, shape: tuple[int, int, int], tf32: None, use_plan: Callable[..., None]
) -> None:
    takes_clusters(shape[0])
    use_plan(shaped(*shape, tiles))
    # Rounding to tf32 would change the sign of some of so many ReLU inputs.
    case = replace(RAGGED, H=units, nonlinearity="tanh", name=f"tensor cores {units}")
    got = run_backend("rnn_scan", build("rnn_scan", case, device="cuda"), case, "cuda")
    for name, truth in eager("rnn_scan", case, torch.float64).items():
        assert error(got[name], truth) < 3e-3, name


@pytest.fixture
def bf16() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@each_direction
@pytest.mark.parametrize("rows", [3, 16, 26])
@pytest.mark.parametrize("kernel", IN_BF16, ids=str)
def test_rnn_scan_in_bf16(
    kernel: tuple[int, ...], rows: int, direction: str, bf16: None, use_plan: Callable[..., None]
) -> None:
    tiling = Bf16Tiling(*kernel)
    units = tiling.inputs - 4
    takes_clusters(-(-units // tiling.outputs))
    room = cuda_device(torch.cuda.current_device()).shared_bytes
    use_plan(lambda plan: plan.tilings == (tiling,) and plan[0] <= rows, room=room)
    case = replace(RAGGED, B=40, H=units, nonlinearity="tanh", direction=direction, name=f"in bf16 {units}")
    got = run_backend("rnn_scan", build("rnn_scan", case, device="cuda"), case, "cuda")
    for name, truth in eager("rnn_scan", case, torch.float64).items():
        assert error(got[name], truth) < 4e-2, name


@pytest.mark.parametrize("rows", [1, 8, 15, 20, 32])
@pytest.mark.parametrize(("units", "latents"), [(300, 50), (600, 100)])
def test_combiner_scan_on_tensor_cores(
    units: int, latents: int, rows: int, tf32: None, use_plan: Callable[..., None]
) -> None:
    """Up to four groups of a cluster, the last cluster with fewer rows."""
    takes_clusters(5)
    use_plan(on_tensor_cores(5, rows))
    case = replace(RAGGED, H=units, Z=latents, name=f"combiner on tensor cores {units}")
    got = run_backend("combiner_scan", build("combiner_scan", case, device="cuda"), case, "cuda")
    for name, truth in eager("combiner_scan", case, torch.float64).items():
        assert error(got[name], truth) < 3e-3, name
