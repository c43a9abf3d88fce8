"""How the scans are cut up for a GPU: whatever the sizes, everything is computed once and fits."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm_fast.cuda.plan import (
    H100,
    ROWS,
    THREADS,
    Device,
    Plan,
    Tiling,
    combiner_plan,
    combiner_plans,
    cuda_device,
    rnn_plan,
    rnn_plans,
)

A100 = Device(166_912, (108, 0, 0, 0, 0))
sizes = st.integers(1, 1100)
devices = st.sampled_from([H100, A100, H100._replace(clusters=(78, 38, 18, 9, 0))])


def check_tiling(tiling: Tiling) -> None:
    size = tiling.width // tiling.groups
    assert size * (tiling.groups - 1) < tiling.outputs <= size * tiling.groups
    assert tiling.stride >= tiling.inputs
    assert tiling.threads <= THREADS
    kept = tiling.in_registers + tiling.in_shared
    assert tiling.in_shared >= 0
    assert kept <= tiling.quads
    assert kept == 0 or tiling.groups <= THREADS


def check_plan(plan: Plan, rows: int, device: Device) -> None:
    assert plan.clusters * plan.rows_per_cluster >= rows > (plan.clusters - 1) * plan.rows_per_cluster
    assert 1 <= plan.rows_per_group <= plan.tilings[0].chunk
    assert plan.rows_per_cluster <= max(ROWS)
    assert device.at_once(plan.cluster_size)
    assert plan.shared_bytes <= device.shared_bytes
    for tiling in plan.tilings:
        check_tiling(tiling)


@given(rows=sizes, units=sizes, device=devices, backward=st.booleans(), tf32=st.booleans())
def test_rnn_plans_cover_the_sizes(rows: int, units: int, device: Device, backward: bool, tf32: bool) -> None:
    plan = rnn_plan(rows, units, device, backward, tf32)
    check_plan(plan, rows, device)
    (tiling,) = plan.tilings
    assert tiling.inputs == units
    assert tiling.outputs * plan.cluster_size >= units


@given(rows=sizes, units=sizes, latents=st.integers(1, 300), device=devices, backward=st.booleans())
def test_combiner_plans_cover_the_sizes(
    rows: int, units: int, latents: int, device: Device, backward: bool
) -> None:
    plan = combiner_plan(rows, units, latents, device, backward)
    check_plan(plan, rows, device)
    to, back = plan.tilings
    inputs, outputs = (2 * latents, latents) if backward else (latents, 2 * latents)
    assert (to.inputs, back.outputs) == (inputs, outputs)
    assert to.outputs == back.inputs
    assert to.outputs * plan.cluster_size >= units


@pytest.mark.parametrize("backward", [False, True])
def test_the_tutorials_weights_stay_in_registers(backward: bool) -> None:
    for plan in (rnn_plan(20, 600, H100, backward), combiner_plan(20, 600, 100, H100, backward)):
        assert plan.cluster_size in (8, 16)
        assert all(tiling.in_registers == tiling.quads for tiling in plan.tilings)


def test_a_plan_is_the_one_of_least_estimated_time() -> None:
    for plan, plans in (
        (rnn_plan(20, 600), rnn_plans(20, 600)),
        (combiner_plan(20, 600, 100), combiner_plans(20, 600, 100)),
    ):
        fitting = [p.step_cycles for p in plans if p.shared_bytes <= H100.shared_bytes]
        assert plan.step_cycles == min(fitting) < max(fitting)


def test_a_gpu_without_clusters_gets_none() -> None:
    assert rnn_plan(20, 600, A100).cluster_size == 1
    assert combiner_plan(20, 600, 100, A100).cluster_size == 1


def test_no_rows_have_a_plan_too() -> None:
    assert rnn_plan(0, 5).rows_per_cluster == 1


def test_sizes_beyond_shared_memory_are_refused() -> None:
    small = H100._replace(shared_bytes=4_000)
    with pytest.raises(
        ValueError, match=r"^rnn_scan with H = 600: expected sizes of which one row fits 4000"
    ):
        rnn_plan(1, 600, small)
    with pytest.raises(ValueError, match=r"^combiner_scan with H = 600 and Z = 100: expected sizes"):
        combiner_plan(1, 600, 100, small)


def test_a_plan_says_what_it_is() -> None:
    said = str(rnn_plan(20, 600))
    plan = rnn_plan(20, 600)
    assert f"{plan.clusters} clusters of {plan.cluster_size} blocks of {plan.threads} threads" in said
    assert f"{plan.shared_bytes} bytes of shared memory" in said


@pytest.mark.parametrize(
    ("major", "clusters"),
    [(8, (7, 0, 0, 0, 0)), (9, (7, 2, 4, 8, 16)), (10, (7, 2, 4, 8, 16)), (12, (7, 2, 4, 8, 0))],
)
def test_a_device_is_asked_for_clusters_of_two_or_more(
    major: int, clusters: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA answers with an error for a cluster of one, and for sizes that the device does not have."""

    def clusters_at_once(index: int, size: int, shared_bytes: int) -> int:
        assert (index, shared_bytes) == (3, 1000)
        assert size >= 2
        return size

    found = SimpleNamespace(major=major, multi_processor_count=7, shared_memory_per_block_optin=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    monkeypatch.setattr(torch.ops.dmm_fast, "_clusters_at_once", clusters_at_once, raising=False)
    cuda_device.cache_clear()
    assert cuda_device(3) == Device(1000, clusters)
    cuda_device.cache_clear()
