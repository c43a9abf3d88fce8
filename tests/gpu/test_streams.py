"""Work goes to the current stream, waits for nothing, and can be captured and replayed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.gpu.calls import OP_BACKENDS, RAGGED, assert_near, prepare

each_op = pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)

# Long enough that whatever does not wait for it is done first.
BUSY_CYCLES = 200_000_000


@contextmanager
def no_waiting() -> Iterator[None]:
    """An op of torch that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_op
def test_no_op_waits_for_the_device(op_name: str, backend: str) -> None:
    call = prepare(op_name, backend)
    torch.cuda.synchronize()
    with no_waiting():
        call.run()


def test_waiting_would_show() -> None:
    number = torch.ones(1, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@each_op
def test_an_op_keeps_its_place_on_a_stream_of_its_own(op_name: str, backend: str) -> None:
    call, other = prepare(op_name, backend), prepare(op_name, backend, replace(RAGGED, seed=1))
    expected = other.run()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # The numbers arrive late on this stream: whoever works on another one reads the old ones.
        torch.cuda._sleep(BUSY_CYCLES)
        call.take(other)
        got = call.run()
    torch.cuda.synchronize()
    assert_near(got, expected)


@each_op
def test_a_captured_call_is_replayed_on_other_numbers(op_name: str, backend: str) -> None:
    call = prepare(op_name, backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call.run()
    for seed in (1, 2):
        # Lengths too: they are read on the device alone.
        other = prepare(op_name, backend, replace(RAGGED, seed=seed, lengths=("ragged", "full")[seed - 1]))
        call.take(other)
        graph.replay()
        torch.cuda.synchronize()
        assert_near(got, other.run())
