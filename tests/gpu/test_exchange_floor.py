"""The exchange floor of a cluster scan on the hardware: the ring turns by one place per step."""

import pytest
import torch

from benchmarks import exchange_floor

WHY_NOT = exchange_floor.missing("cuda")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

STORES = {"async_b32": 1, "async_v2": 2, "async_v4": 4}
"""Numbers that a thread stores at once."""


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("giving_warps", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("clusters", "cluster_size", "width", "threads", "steps"),
    [
        (1, 1, 1, 32, 0),
        (3, 2, 5, 32, 4),
        (33, 4, 450, 512, 129),
        (16, 8, 225, 256, 129),
        (8, 16, 113, 512, 1000),
    ],
)
def test_the_ring_turns_by_one_place_per_step(
    clusters: int, cluster_size: int, width: int, threads: int, steps: int, giving_warps: int, store: str
) -> None:
    if cluster_size > 1 and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters take compute capability 9.0")
    width = -(-width // STORES[store]) * STORES[store]
    given = torch.randn(clusters, cluster_size * width, device="cuda")
    warps = min(giving_warps, threads // 32)
    turned = torch.ops.dmm_fast_benchmarks.exchange_floor(given, steps, cluster_size, threads, store, warps)
    assert torch.equal(turned, given.roll(-steps, 1))


@pytest.mark.parametrize(
    ("width", "threads", "store", "giving_warps", "said"),
    [
        (8, 48, "async_v4", 0, "threads: expected a multiple of 32 from 32 to 1024, got 48"),
        (8, 64, "plain", 0, "store: expected async_b32, async_v2 or async_v4, got plain"),
        (8, 64, "async_v4", 3, "giving_warps: expected an int from 0 to 2, got 3"),
        (6, 64, "async_v4", 0, "rings: expected rows of a multiple of 4, for cluster_size = 1"),
    ],
)
def test_a_wrong_argument_is_named(
    width: int, threads: int, store: str, giving_warps: int, said: str
) -> None:
    given = torch.randn(1, width, device="cuda")
    with pytest.raises(RuntimeError, match=said):
        torch.ops.dmm_fast_benchmarks.exchange_floor(given, 1, 1, threads, store, giving_warps)


@pytest.mark.parametrize("store", STORES)
def test_the_floor_leaves_no_record_of_a_hang(store: str) -> None:
    size = 8 if torch.cuda.get_device_capability() >= (9, 0) else 1
    given = torch.randn(3, size * 64, device="cuda")
    for steps in range(5):
        torch.ops.dmm_fast_benchmarks.exchange_floor(given, steps, size, 64, store)
    torch.cuda.synchronize()
    exchange_floor.raise_on_hang()
