"""Plans of the scans for a GPU: for all sizes, every output is computed once and the plan fits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm_fast.cuda.combiner_tensor import TensorTiling
from dmm_fast.cuda.devices import CLUSTER_SIZES, H100, KNOWN, Device, cuda_device
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.plan import (
    ROWS,
    Plan,
    combiner_plan,
    combiner_plans,
    rnn_plan,
    rnn_plans,
    scan_plans,
)
from dmm_fast.cuda.rnn_bf16 import Bf16Tiling
from dmm_fast.cuda.rnn_plans import CHUNK as CHUNK_OF_WARPS
from dmm_fast.cuda.rnn_plans import WarpTiling
from dmm_fast.cuda.scan_kernels import kernels
from dmm_fast.cuda.tilings import THREADS, Tiling

A100 = KNOWN["a100"]
sizes = st.integers(1, 1600)
devices = st.sampled_from([*KNOWN.values(), H100._replace(clusters=(78, 38, 18, 9, 0))])
TUTORIAL = (20, 600, 100)


def check_tiling(tiling: Tiling | LaneTile) -> None:
    if isinstance(tiling, LaneTile):
        assert tiling.inputs <= 8 * tiling.lane_inputs
        assert tiling.outputs <= THREADS // 8 * tiling.group_outputs
        assert 0 < tiling.kept < 255
        return
    size = tiling.width // tiling.groups
    assert size * (tiling.groups - 1) < tiling.outputs <= size * tiling.groups
    assert tiling.stride >= tiling.inputs
    assert tiling.threads <= THREADS
    kept = tiling.in_registers + tiling.in_shared
    assert tiling.in_shared >= 0
    assert kept <= tiling.quads
    assert kept == 0 or tiling.groups <= THREADS


def check_warp_tiling(plan: Plan, tiling: WarpTiling) -> None:
    several = plan.rows_per_cluster > plan.rows_per_group
    kind = "rnn_scan_words" if plan.exchange == "memory" else "rnn_scan_warps"
    assert (*tiling, plan.rows_per_group, several) in kernels(kind)
    assert tiling.block_outputs * plan.cluster_size <= CHUNK_OF_WARPS * tiling.chunks
    assert tiling.kept < 255


def check_bf16_tiling(plan: Plan, tiling: Bf16Tiling) -> None:
    assert tuple(tiling) in kernels("rnn_scan_bf16")
    assert plan.rows_per_group <= tiling.rows
    assert plan.cluster_size > 1
    assert tiling.threads == plan.threads


def check_tensor_tiling(plan: Plan, tiling: TensorTiling) -> None:
    assert plan.rows_per_group <= 8
    assert tiling.fits
    assert tiling.kept < 255
    assert tiling.share(plan.cluster_size) <= 32


def check_kernel(plan: Plan, backward: bool) -> None:
    """Assert that a plan of combiner_scan has a kernel."""
    if isinstance(plan.tilings[0], TensorTiling):
        _, _, *tiles = plan.tilings[0]
        sizes = plan.cluster_size, tiles[0], tiles[1], tiles[3], tiles[4]
        assert sizes in kernels("combiner_tensor_backward" if backward else "combiner_tensor")
        return
    to, back = plan.tilings
    if isinstance(to, LaneTile) and isinstance(back, LaneTile):
        blocks, kind = ([], "words") if plan.exchange == "memory" else ([plan.cluster_size], "rows")
        sizes = to.group_outputs, to.lane_inputs, back.group_outputs, back.lane_inputs
        listed = kernels(f"combiner_{kind}_backward" if backward else f"combiner_{kind}")
        assert (*blocks, *sizes, plan.rows_per_group) in listed
    else:
        smaller, larger = (back, to) if backward else (to, back)
        assert (smaller.in_registers, larger.in_registers) in kernels("combiner_scan")


def check_plan(plan: Plan, rows: int, device: Device) -> None:
    assert plan.clusters * plan.rows_per_cluster >= rows > (plan.clusters - 1) * plan.rows_per_cluster
    assert plan.rows_per_group >= 1
    assert plan.rows_per_cluster <= max(ROWS)
    if plan.exchange == "memory":
        assert plan.cluster_size > 1
        assert device.teams_at_once(plan.cluster_size)
    else:
        assert device.at_once(plan.cluster_size)
        assert (plan.exchange == "none") == (plan.cluster_size == 1)
    assert plan.shared_bytes <= device.shared_bytes
    for tiling in plan.tilings:
        if isinstance(tiling, TensorTiling):
            check_tensor_tiling(plan, tiling)
        elif isinstance(tiling, WarpTiling):
            check_warp_tiling(plan, tiling)
        elif isinstance(tiling, Bf16Tiling):
            check_bf16_tiling(plan, tiling)
        else:
            assert plan.rows_per_group <= tiling.chunk
            check_tiling(tiling)


@given(
    rows=sizes, units=sizes, device=devices, backward=st.booleans(), tf32=st.booleans(), bf16=st.booleans()
)
def test_rnn_plans_cover_the_sizes(
    rows: int, units: int, device: Device, backward: bool, tf32: bool, bf16: bool
) -> None:
    plan = rnn_plan(rows, units, device, backward, tf32, bf16)
    check_plan(plan, rows, device)
    (tiling,) = plan.tilings
    if isinstance(tiling, WarpTiling):
        assert tiling.chunks * CHUNK_OF_WARPS >= units
        assert tiling.block_outputs * plan.cluster_size >= units
    elif isinstance(tiling, Bf16Tiling):
        assert bf16
        assert tiling.inputs >= units
        assert plan.cluster_size == -(-units // tiling.outputs)  # every block has units
    else:
        assert tiling.inputs == units
        assert tiling.outputs * plan.cluster_size >= units


@given(
    rows=sizes,
    units=sizes,
    latents=st.integers(1, 300),
    device=devices,
    backward=st.booleans(),
    tf32=st.booleans(),
)
def test_combiner_plans_cover_the_sizes(
    rows: int, units: int, latents: int, device: Device, backward: bool, tf32: bool
) -> None:
    plan = combiner_plan(rows, units, latents, device, backward, tf32)
    check_plan(plan, rows, device)
    check_kernel(plan, backward)
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    if isinstance(plan.tilings[0], TensorTiling):
        (tiling,) = plan.tilings
        assert tf32
        assert (tiling.inputs, tiling.outputs) == (inputs, outputs)
        assert tiling.units * plan.cluster_size >= units
        return
    to, back = plan.tilings
    assert (to.inputs, back.outputs) == (inputs, outputs)
    assert to.outputs == back.inputs
    assert to.outputs * plan.cluster_size >= units


@pytest.mark.parametrize("backward", [False, True])
def test_the_tutorials_weights_stay_in_registers(backward: bool) -> None:
    for plan in (rnn_plan(20, 600, H100, backward), combiner_plan(20, 600, 100, H100, backward)):
        assert plan.cluster_size in (5, 15)
        assert all(tiling.in_registers == tiling.quads for tiling in plan.tilings)


def test_a_plan_is_the_one_of_least_estimated_time() -> None:
    for plan, plans in (
        (rnn_plan(20, 600), rnn_plans(20, 600)),
        (combiner_plan(20, 600, 100), combiner_plans(20, 600, 100)),
    ):
        fitting = [p.step_cycles for p in plans if p.shared_bytes <= H100.shared_bytes]
        assert plan.step_cycles == min(fitting) < max(fitting)


@pytest.mark.parametrize(
    ("scan", "shape", "cycles"),
    [
        ("rnn_scan", (3, 3, 15), 1_970),
        ("rnn_scan_backward", (3, 3, 15), 1_970),
        ("combiner_scan", (1, 1, 5), 1_700),
        ("combiner_scan_backward", (1, 1, 5), 1_960),
    ],
)
def test_the_tutorials_plans(scan: str, shape: tuple[int, ...], cycles: float) -> None:
    plan = scan_plans(*TUTORIAL)[scan]
    assert plan[:3] == shape
    assert plan.step_cycles == pytest.approx(cycles, rel=0.05)


@pytest.mark.parametrize("backward", [False, True])
def test_every_additional_group_costs_its_minimum(backward: bool) -> None:
    """The instructions around the multiplication of a group are not hidden by other groups."""
    general = (plan for plan in rnn_plans(20, 600, H100, backward) if isinstance(plan.tilings[0], Tiling))
    scans = (1_700, general), (3_200, combiner_plans(*TUTORIAL, H100, backward))
    for fixed, plans in scans:
        least: dict[tuple[int, ...], float] = {}
        for plan in plans:
            if isinstance(plan.tilings[0], LaneTile):
                continue
            groups = -(-plan.rows_per_cluster // plan.rows_per_group)
            key = plan.rows_per_cluster, plan.cluster_size, groups
            least[key] = min(plan.step_cycles, least.get(key, plan.step_cycles))
            waves = -(-plan.clusters // H100.at_once(plan.cluster_size))
            assert plan.step_cycles > waves * groups * fixed
        of_three = [least[3, 16, groups] for groups in (1, 2, 3)]
        assert of_three == sorted(of_three)


def test_empty_batches_have_a_plan() -> None:
    assert rnn_plan(0, 5).rows_per_cluster == 1


def test_sizes_beyond_shared_memory_are_refused() -> None:
    small = H100._replace(shared_bytes=4_000)
    with pytest.raises(
        ValueError, match=r"^rnn_scan with H = 600: expected sizes for which one row fits in 4000"
    ):
        rnn_plan(1, 600, small)
    with pytest.raises(ValueError, match=r"^combiner_scan with H = 600 and Z = 100: expected sizes"):
        combiner_plan(1, 600, 100, small)


def test_a_plan_describes_itself() -> None:
    said = str(rnn_plan(20, 600))
    plan = rnn_plan(20, 600)
    assert f"{plan.clusters} clusters of {plan.cluster_size} blocks of {plan.threads} threads" in said
    assert f"{plan.shared_bytes} bytes of shared memory" in said


@pytest.mark.parametrize(
    ("capability", "clusters"),
    [
        ((8, 6), (7, 0, 0, 0, 0)),
        ((9, 0), (7, 2, 4, 8, 16)),
        ((10, 3), (7, 2, 4, 8, 16)),
        ((12, 0), (7, 2, 4, 8, 0)),
    ],
)
def test_a_device_is_queried_for_clusters_of_two_or_more(
    capability: tuple[int, int], clusters: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA returns an error for clusters of one block and for unsupported sizes."""

    def clusters_at_once(index: int, size: int, shared_bytes: int) -> int:
        assert (index, shared_bytes) == (3, 1000)
        assert size >= 2
        return size

    major, minor = capability
    found = SimpleNamespace(
        name="a GPU",
        major=major,
        minor=minor,
        multi_processor_count=7,
        shared_memory_per_block_optin=1000,
        clock_rate=1_500_000,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    monkeypatch.setattr(torch.ops.dmm_fast, "_clusters_at_once", clusters_at_once, raising=False)
    cuda_device.cache_clear()
    sizes = [size for size in range(2, 16) if size not in CLUSTER_SIZES] if clusters[1] else []
    between = tuple((size, size if size <= 8 or clusters[-1] else 0) for size in sizes)
    expected = Device("a GPU", capability, 7, 1000, clusters, 1.5, between)
    assert expected.at_once(5) == (5 if between else 0)
    assert cuda_device(3) == expected
    cuda_device.cache_clear()
    del found.clock_rate  # as in some builds of torch
    assert cuda_device(3) == expected._replace(clock=expected.architecture.clock)
    cuda_device.cache_clear()
