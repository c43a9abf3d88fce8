"""The floor of a scan's exchanges: a ring that turns by one place per step."""

from typing import Any

import numpy as np
import pytest

emulator = pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")

# Floats per store.
each_store = pytest.mark.parametrize("store", [1, 2, 4])


def rings(clusters: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((clusters, size)).astype(np.float32)


def turn(
    given: np.ndarray,
    steps: int,
    cluster_size: int,
    threads: int = 32,
    store: int = 1,
    giving_warps: int = 0,
    **options: Any,
) -> np.ndarray:
    how = {"store": store, "giving_warps": giving_warps or threads // 32}
    chosen = emulator.Options(**options)
    return emulator.exchange_floor(given, steps, cluster_size, threads, **how, options=chosen)


@pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}], ids=str)
@each_store
@pytest.mark.parametrize("giving_warps", [0, 1, 2])
@pytest.mark.parametrize(
    ("clusters", "cluster_size", "vectors", "threads", "steps"),
    [(1, 1, 1, 64, 0), (1, 1, 7, 64, 3), (3, 2, 5, 64, 4), (2, 8, 33, 64, 21), (1, 16, 40, 96, 9)],
)
def test_the_ring_turns_by_one_place_per_step(
    clusters: int,
    cluster_size: int,
    vectors: int,
    threads: int,
    steps: int,
    giving_warps: int,
    store: int,
    order: dict[str, bool],
) -> None:
    given = rings(clusters, cluster_size * vectors * store)
    turned = turn(given, steps, cluster_size, threads, store, giving_warps, **order)
    np.testing.assert_array_equal(turned, np.roll(given, -steps, axis=1))


@each_store
@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_a_missing_barrier_is_detected(store: int, reversed: bool) -> None:
    given = rings(1, 160)
    turned = turn(given, 3, 8, store=store, reversed=reversed, max_barriers=0)
    assert not np.array_equal(turned, np.roll(given, -3, axis=1))
    assert np.isnan(turned).any()


@each_store
@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_a_lost_store_is_reported_by_the_block_that_misses_it(store: int, step: int) -> None:
    """The first store of the block of rank 5 is the one to itself."""
    where = f"group 0, step {step}, parity {step >> 1 & 1}, rows 1,"
    expected = f"^exchange_floor: block 5, rank 5 .*: {where}"
    with pytest.raises(RuntimeError, match=expected):
        turn(rings(1, 160), 7, 8, store=store, fault="lost", rank=5, step=step)


@each_store
def test_a_block_that_sends_nothing_is_reported_at_the_first_step(store: int) -> None:
    with pytest.raises(RuntimeError, match="timed out waiting: group 0, step 0, parity 0, rows 1,"):
        turn(rings(2, 160), 7, 8, 64, store=store, fault="silent", rank=3)


@each_store
def test_a_block_that_times_out_stays_for_the_others(store: int) -> None:
    with pytest.raises(RuntimeError, match="timed out waiting: group 0, step 0,"):
        turn(rings(1, 160), 7, 8, store=store, fault="early_timeout")


@each_store
@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_duplicate_store_is_reported_at_the_end(store: int, step: int) -> None:
    """Seven steps are followed by waits for 7 and 8; the one on the barrier with surplus bytes times out."""
    after = 7 + (step + 1) % 2
    expected = f"rank 5 .*: group 0, step {after}, parity {after >> 1 & 1}, rows 0,"
    with pytest.raises(RuntimeError, match=expected):
        turn(rings(1, 160), 7, 8, store=store, fault="doubled", rank=5, step=step)


# --- through device memory, in words of three floats --------------------------------------------------------

WORDS = 3


@pytest.mark.parametrize("order", [{}, {"reversed": True}, {"late": True}, {"shuffled": True}], ids=str)
@pytest.mark.parametrize(
    ("teams", "blocks", "words", "threads", "giving_warps", "steps"),
    [(1, 2, 1, 64, 0, 0), (3, 2, 5, 64, 1, 4), (2, 20, 3, 32, 0, 5), (1, 3, 140, 64, 2, 6)],
)
def test_the_ring_of_a_team_turns_by_one_place_per_step(
    teams: int, blocks: int, words: int, threads: int, giving_warps: int, steps: int, order: dict[str, bool]
) -> None:
    given = rings(teams, blocks * words * WORDS)
    turned = turn(given, steps, blocks, threads, WORDS, giving_warps, **order)
    np.testing.assert_array_equal(turned, np.roll(given, -steps, axis=1))


@pytest.mark.parametrize("step", [0, 1, 6])
def test_a_lost_word_is_reported(step: int) -> None:
    """The reader finds nothing instead, or the word of two steps before."""
    where = (
        f"of its team, timed out waiting: group 0, step {step}, rows 1, thread .*, flag 0x{max(step - 1, 0)}"
    )
    with pytest.raises(RuntimeError, match=where):
        turn(rings(1, 96), 7, 4, store=WORDS, fault="lost", rank=2, step=step)


@pytest.mark.parametrize("fault", ["silent", "early_timeout"])
def test_a_team_out_of_step_is_reported(fault: str) -> None:
    with pytest.raises(RuntimeError, match="of its team, timed out waiting: group 0, step "):
        turn(rings(1, 96), 7, 4, store=WORDS, fault=fault, rank=2)


@pytest.mark.parametrize("fault", ["torn", "old_words"])
def test_words_of_another_step_are_detected(fault: str) -> None:
    given = rings(1, 96)
    turned = turn(given, 3, 4, store=WORDS, fault=fault, shuffled=True)
    assert not np.array_equal(turned, np.roll(given, -3, axis=1))
