"""A step with weight gradients on a side stream: both streams wait before reusing memory."""

from functools import partial

import pytest

from dmm_fast import triton
from dmm_fast.ops import use_backend
from tests.helpers_graph import Run
from tests.helpers_model import assert_close, make_batch
from tests.helpers_streams import Launch, Order, SteppedBeside, Wait, noted_kernels, races

if not triton.INTERPRETED:
    pytest.skip("runs where Triton's kernels are interpreted: make triton", allow_module_level=True)

BATCHES = [make_batch((3, 1), seed=seed) for seed in range(2)]


Done = tuple[Order, SteppedBeside, Run]


@pytest.fixture(scope="module")
def done() -> Done:
    """A warm-up, and a step captured with a side stream."""
    order = Order()
    capturer = SteppedBeside(order, partial(noted_kernels, order))
    run = Run(capturer)
    run.step(*BATCHES[0], 0.5)
    with use_backend("triton"):
        run.step(*BATCHES[1], 0.5)
    return order, capturer, run


def test_every_launch_waits_for_its_memory(done: Done) -> None:
    order, capturer, _ = done
    aside = [each.name for each in order.events if isinstance(each, Launch) and each.stream == "side"]
    assert aside == ["products_kernel", "sums_kernel"] * 3  # of the emission, the transition, the combiner
    assert capturer.captures == 1
    assert races(order.events) == []


def test_a_step_equals_a_plain_one(done: Done) -> None:
    plain = Run(None)
    for batch in BATCHES:
        plain.step(*batch, 0.5)
    for (name, p), q in zip(plain.dmm.named_parameters(), done[2].dmm.parameters(), strict=True):
        assert_close(q.detach(), p.detach(), 1e-4, name)


@pytest.mark.parametrize("waiting", ["main", "side"])
def test_a_missing_wait_causes_races(waiting: str, done: Done) -> None:
    waits = [each for each in done[0].events if isinstance(each, Wait) and each.stream == waiting]
    assert len(waits) == {"main": 1, "side": 3}[waiting]
    for wait in waits:
        assert races([each for each in done[0].events if each is not wait])
