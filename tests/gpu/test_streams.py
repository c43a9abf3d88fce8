"""Ops run on the current stream without synchronising, and can be captured and replayed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.gpu.calls import OP_BACKENDS, RAGGED, assert_near, prepare

each_op = pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)

# Long enough that work which does not wait for it finishes first.
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
def test_no_op_synchronises(op_name: str, backend: str) -> None:
    call = prepare(op_name, backend)
    torch.cuda.synchronize()
    with no_waiting():
        call.run()


def test_synchronisation_would_be_detected() -> None:
    number = torch.ones(1, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@each_op
def test_an_op_runs_on_the_current_stream(op_name: str, backend: str) -> None:
    call, other = prepare(op_name, backend), prepare(op_name, backend, replace(RAGGED, seed=1))
    expected = other.run()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # The values arrive late on this stream, so work on another stream would read the old ones.
        torch.cuda._sleep(BUSY_CYCLES)
        call.take(other)
        got = call.run()
    torch.cuda.synchronize()
    assert_near(got, expected)


@each_op
def test_a_captured_call_is_replayed_on_other_data(op_name: str, backend: str) -> None:
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
        # Lengths as well, which are only read on the device.
        other = prepare(op_name, backend, replace(RAGGED, seed=seed, lengths=("ragged", "full")[seed - 1]))
        call.take(other)
        graph.replay()
        torch.cuda.synchronize()
        assert_near(got, other.run())
