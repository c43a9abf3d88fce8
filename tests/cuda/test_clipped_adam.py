"""A step of Adam with clipped gradients: the CUDA kernel compared with the float64 reference."""

from typing import Any

import numpy as np
import pytest
import torch

from dmm_fast import reference

emulator = pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")

RULE: dict[str, Any] = {
    "step": 3,
    "lr": 0.01,
    "beta1": 0.96,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}
SIZES = [1, 3, 1000, 0, 40_000, 4, 1024, 1025, 0]
TABLE = emulator.ADAM_TENSORS

Lists = list[list[np.ndarray]]


def draw(sizes: list[int], offset: int = 0) -> Lists:
    """Parameters, gradients, averages and averages of squares, misaligned by ``offset`` floats.

    Each ends where its memory ends, so that the address sanitizer detects accesses past it.
    """
    rng = np.random.default_rng(0)

    def one(size: int, scale: float = 1.0, absolute: bool = False) -> np.ndarray:
        memory = np.empty(offset + size, np.float32)
        memory[offset:] = scale * rng.standard_normal(size)
        return np.abs(memory, out=memory)[offset:] if absolute else memory[offset:]

    return [
        [one(n) for n in sizes],
        [one(n, 3.0) for n in sizes],
        [one(n, 0.1) for n in sizes],
        [one(n, 0.1, True) for n in sizes],
    ]


def expect(lists: Lists, **rule: Any) -> Lists:
    """The results of the reference for copies, in float64."""
    tensors = [[torch.from_numpy(a).double() for a in arrays] for arrays in lists]
    reference.clipped_adam(*tensors, **rule)
    return [[t.numpy() for t in parallel] for parallel in tensors]


def assert_near(lists: Lists, expected: Lists) -> None:
    for arrays, truths in zip(lists, expected, strict=True):
        for array, truth in zip(arrays, truths, strict=True):
            np.testing.assert_allclose(array, truth, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"weight_decay": 0.0, "step": 1},
        {"centered_variance": True, "step": 2**40},
        {"clip_norm": float("inf"), "beta1": 0.0, "beta2": 0.0},
    ],
    ids=str,
)
def test_a_step_equals_the_reference(changed: dict[str, Any], offset: int, reversed: bool) -> None:
    rule = {**RULE, **changed}
    lists = draw(SIZES, offset)
    expected = expect(lists, **rule)
    assert emulator.clipped_adam(*lists, **rule, reversed=reversed) == 1
    assert_near(lists, expected)


def test_arrays_of_a_tensor_may_have_different_alignments() -> None:
    lists = [draw([1030], offset)[k] for k, offset in enumerate([0, 1, 2, 3])]
    expected = expect(lists, **RULE)
    emulator.clipped_adam(*lists, **RULE)
    assert_near(lists, expected)


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("lrs", [False, True])
def test_step_counts_and_rates_may_be_arrays(steps: bool, lrs: bool) -> None:
    ours, theirs = draw(SIZES), draw(SIZES)
    at = {
        "steps": [np.array(2 * i + 1) for i in range(len(SIZES))] if steps else [],
        "lrs": [np.array(0.1 / (i + 1)) for i in range(len(SIZES))] if lrs else [],
    }
    emulator.clipped_adam(*ours, **RULE, **at)
    for i in range(len(SIZES)):
        own = {"step": int(at["steps"][i])} if steps else {}
        own |= {"lr": float(at["lrs"][i])} if lrs else {}
        emulator.clipped_adam(*([arrays[i]] for arrays in theirs), **{**RULE, **own})
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("count", [0, TABLE - 1, TABLE, TABLE + 1, 2 * TABLE + 1])
def test_more_tensors_than_a_table_holds_need_more_launches(count: int) -> None:
    lists = draw([5 + i % 3 for i in range(count)])
    expected = expect(lists, **RULE) if count else lists
    assert emulator.clipped_adam(*lists, **RULE) == -(-count // TABLE)
    assert_near(lists, expected)


def test_empty_tensors_are_supported() -> None:
    assert emulator.clipped_adam(*draw([0] * 3), **RULE) == 1


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_nan_gradients_behave_as_in_the_reference(offset: int) -> None:
    lists = draw([40], offset)
    lists[1][0][:3] = [np.nan, np.inf, -np.inf]
    lists[3][0][5] = np.nan
    expected = expect(lists, **RULE)
    emulator.clipped_adam(*lists, **RULE)
    assert np.flatnonzero(np.isnan(lists[0][0])).tolist() == [0, 5]
    assert_near(lists, expected)


def test_a_missing_barrier_is_detected() -> None:
    lists = draw([1000])
    emulator.clipped_adam(*lists, **RULE, reversed=True, max_barriers=0)
    assert np.isnan(lists[0][0]).any()


# --- step counts and learning rates that the kernel changes ------------------------------------------------


class Numbers:
    """Step counts and learning rates on the device, which a step increments and decays."""

    def __init__(self, counts: list[int], rates: list[float], lrd: float = 0.9) -> None:
        self.counts, self.rates, self.lrd = counts, rates, lrd
        self.steps = [np.array(n) for n in counts]
        self.lrs = [np.array(x) for x in rates]
        self.ticket = np.zeros((), np.int32)

    def step(self, lists: Lists, **options: Any) -> int:
        """Take a step under the emulator; returns the number of launches."""
        given = {"steps": self.steps, "lrs": self.lrs, "lrd": self.lrd, "tickets": [self.ticket]}
        return emulator.clipped_adam(*lists, **RULE, **given, advance=True, **options)

    def step_after_them(self, lists: Lists) -> None:
        """Increment and decay on the host, then take the step with constant numbers."""
        self.counts = [n + 1 for n in self.counts]
        self.rates = [x * self.lrd for x in self.rates]
        steps, lrs = [np.array(n) for n in self.counts], [np.array(x) for x in self.rates]
        emulator.clipped_adam(*lists, **RULE, steps=steps, lrs=lrs)

    def assert_advanced(self) -> None:
        assert [int(n) for n in self.steps] == self.counts
        assert [float(x) for x in self.lrs] == self.rates
        assert self.ticket == 0


def assert_equal(ours: Lists, theirs: Lists) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("reversed", [False, True], ids=["", "reversed"])
def test_the_last_block_counts_and_decays(reversed: bool) -> None:
    ours, theirs = draw(SIZES), draw(SIZES)
    of_each = range(len(SIZES))
    numbers = Numbers([3 * i for i in of_each], [0.1 / (i + 1) for i in of_each])
    for _ in range(3):
        assert numbers.step(ours, reversed=reversed) == 1
        numbers.step_after_them(theirs)
        numbers.assert_advanced()
    assert_equal(ours, theirs)


@pytest.mark.parametrize("count", [3, TABLE + 2])
def test_shared_step_counts_and_rates_change_once(count: int) -> None:
    sizes = [5 if i % 8 == 1 else 0 for i in range(count)]
    ours, theirs = draw(sizes), draw(sizes)
    numbers = Numbers([7] * count, [(0.1, 0.2)[i % 2] for i in range(count)])
    numbers.steps = numbers.steps[:1] * count
    numbers.lrs = [numbers.lrs[i % 2] for i in range(count)]
    for _ in range(3):
        assert numbers.step(ours) == -(-count // TABLE)
        numbers.step_after_them(theirs)
        numbers.assert_advanced()
    assert_equal(ours, theirs)


def test_steps_of_empty_tensors_are_counted() -> None:
    numbers = Numbers([0, 4], [0.5, 0.25])
    numbers.step(draw([0, 0]))
    assert ([int(n) for n in numbers.steps], [float(x) for x in numbers.lrs]) == ([1, 5], [0.45, 0.225])
