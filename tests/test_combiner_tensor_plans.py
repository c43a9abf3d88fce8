"""Plans of combiner_scan on tensor cores: their batch sizes, and the cost of a step."""

import pytest

from dmm_fast.cuda import combiner_tensor
from dmm_fast.cuda.devices import H100
from dmm_fast.cuda.plan import combiner_plan


@pytest.mark.parametrize("backward", [False, True])
def test_large_batches_use_tensor_cores_where_allowed(backward: bool) -> None:
    """Batches of 64 rows use them as well, small ones do not, as the second exchange costs too much."""

    def is_on_tensor_cores(rows: int, tf32: bool) -> bool:
        plan = combiner_plan(rows, 600, 100, H100, backward, tf32)
        return bool(plan.tilings[0].tensor_tiles)

    assert is_on_tensor_cores(512, tf32=True)
    assert is_on_tensor_cores(64, tf32=True)
    assert not is_on_tensor_cores(20, tf32=True)
    assert not is_on_tensor_cores(512, tf32=False)


@pytest.mark.parametrize(
    ("backward", "products", "received"),
    [(False, (26, 60), (2560, 5120)), (True, (50, 30), (5120, 2560))],
)
def test_the_cost_of_a_step_of_a_group_on_tensor_cores(
    backward: bool, products: tuple[int, int], received: tuple[int, int]
) -> None:
    """Eight rows, H = 600, Z = 100: a block has 8 tiles of units, 13 or 7 of sums, and 20 latents."""
    cut = next(c for c in combiner_tensor.cuts(600, 100, backward, 32) if c.rows == 32)
    assert (cut.at_once, cut.cluster_size) == (8, 5)
    assert cut.products == products
    assert cut.received == received
