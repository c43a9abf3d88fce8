"""The floor of a cluster scan on the hardware: the ring turns by one place a step."""

import pytest
import torch

from dmm_fast import native

pytestmark = pytest.mark.skipif(not native.cuda_architectures(), reason="built without CUDA kernels")


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
def test_the_ring_turns_by_a_place_a_step(
    clusters: int, cluster_size: int, width: int, threads: int, steps: int
) -> None:
    if cluster_size > 1 and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters take compute capability 9.0")
    given = torch.randn(clusters, cluster_size * width, device="cuda")
    turned = torch.ops.dmm_fast.exchange_floor(given, steps, cluster_size, threads)
    assert torch.equal(turned, given.roll(-steps, 1))
