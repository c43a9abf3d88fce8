"""Plans of combiner_scan on tensor cores: which batches they are for, and what a step takes."""

import pytest

from dmm_fast.cuda import combiner_tensor
from dmm_fast.cuda.devices import H100
from dmm_fast.cuda.plan import combiner_plan


@pytest.mark.parametrize("backward", [False, True])
def test_large_batches_are_for_tensor_cores_where_they_are_allowed(backward: bool) -> None:
    """So are those of 64 rows, and not those of a few: an exchange more costs too much."""

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
def test_what_a_step_of_a_group_takes_on_tensor_cores(
    backward: bool, products: tuple[int, int], received: tuple[int, int]
) -> None:
    """Eight rows, H = 600, Z = 100: a block has 8 tiles of units, 13 of sums or 7, and 20 latents of five."""
    cut = next(c for c in combiner_tensor.cuts(600, 100, backward, 32) if c.rows == 32)
    assert (cut.at_once, cut.cluster_size) == (8, 5)
    assert cut.products == products
    assert cut.received == received
