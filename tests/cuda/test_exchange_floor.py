"""The floor of a cluster scan: a ring that turns by one place a step."""

import numpy as np
import pytest

emulator = pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")


def rings(clusters: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((clusters, size)).astype(np.float32)


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize(
    ("clusters", "cluster_size", "width", "threads", "steps"),
    [(1, 1, 1, 32, 0), (1, 1, 7, 32, 3), (3, 2, 5, 32, 4), (2, 8, 33, 32, 21), (1, 16, 40, 64, 9)],
)
def test_the_ring_turns_by_a_place_a_step(
    clusters: int, cluster_size: int, width: int, threads: int, steps: int, reversed: bool
) -> None:
    given = rings(clusters, cluster_size * width)
    turned = emulator.exchange_floor(given, steps, cluster_size, threads, reversed=reversed)
    np.testing.assert_array_equal(turned, np.roll(given, -steps, axis=1))


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_barrier_shows(reversed: bool) -> None:
    given = rings(1, 40)
    turned = emulator.exchange_floor(given, 3, 8, 32, reversed=reversed, heeded=0)
    assert not np.array_equal(turned, np.roll(given, -3, axis=1))
    assert np.isnan(turned).any()
