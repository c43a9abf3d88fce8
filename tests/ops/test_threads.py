"""Threads of the compiled ops: their number, independence of results from it, and forks."""

import os
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dmm_fast import _extension
from tests.cases import CASES, Case
from tests.compare import run_backend
from tests.compiled import COMPILED, Call, calls_of, clipped_adam_call
from tests.device import cpu_only
from tests.inputs import build

pytestmark = [
    cpu_only,
    pytest.mark.skipif(_extension.missing is not None, reason=f"no compiled library: {_extension.missing}"),
]

SMALL = Case("small model", B=8, T=60, D=88, Z=6, H=12, R=9, G=9, E=8, lengths="ragged")
LARGE = Case("large", B=5, T=50, D=512, Z=512, H=224, R=16, G=16, E=16, nonlinearity="tanh")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared_work() -> Iterator[None]:
    """Make even the smallest work use all threads."""
    torch.ops.dmm_fast._share_small_work(True)
    yield
    torch.ops.dmm_fast._share_small_work(False)


def parts_of(call: Call) -> int:
    call.run()
    return int(torch.ops.dmm_fast._parts_of_last_op())


def same(op_name: str, value: Tensor, alone: Tensor) -> bool:
    if op_name in (
        "combiner_scan",
        "flow_scan",
    ):  # they add up the contributions of each thread's hidden units to a latent
        return torch.allclose(value, alone, rtol=1e-12, atol=1e-13)
    return torch.equal(value, alone)


@pytest.mark.usefixtures("shared_work")
@pytest.mark.parametrize("case", [CASES["primes"], CASES["wide"], SMALL], ids=lambda case: case.name)
@pytest.mark.parametrize("op_name", COMPILED)
def test_results_do_not_depend_on_the_number_of_threads(op_name: str, case: Case) -> None:
    def results() -> dict[str, Tensor]:
        return run_backend(op_name, build(op_name, case, torch.float64), case, "cpp")

    torch.set_num_threads(1)
    alone = results()
    for count in (2, 3, 4, 7):
        torch.set_num_threads(count)
        for name, value in results().items():
            assert same(op_name, value, alone[name]), f"{name}, {count} threads"


@pytest.mark.usefixtures("shared_work")
def test_a_step_of_adam_does_not_depend_on_the_number_of_threads() -> None:
    torch.set_num_threads(1)
    calls = [clipped_adam_call() for _ in range(4)]
    for count, call in enumerate(calls, start=1):
        torch.set_num_threads(count)
        assert parts_of(call) == count
        for tensors, alone in zip(call.args[:4], calls[0].args[:4], strict=True):
            assert all(map(torch.equal, tensors, alone))


@pytest.mark.parametrize("op_name", COMPILED)
def test_small_work_uses_fewer_threads(op_name: str) -> None:
    torch.set_num_threads(4)
    small = {call.name: parts_of(call) for call in calls_of(op_name, SMALL)}
    assert all(parts == 1 for parts in small.values()), small
    large = {call.name: parts_of(call) for call in calls_of(op_name, LARGE)}
    assert all(2 <= parts <= 4 for parts in large.values()), large


def test_a_scan_has_work_for_each_thread_in_each_time_step() -> None:
    torch.set_num_threads(4)
    few_long_steps = Case("few long steps", B=64, T=30, H=128, Z=2, nonlinearity="tanh")
    many_short_steps = Case("many short steps", B=2, T=1280, H=128, Z=2, nonlinearity="tanh")
    for op_name in ("rnn_scan", "combiner_scan", "flow_scan"):
        assert all(parts_of(call) > 1 for call in calls_of(op_name, few_long_steps)), op_name
        assert all(parts_of(call) == 1 for call in calls_of(op_name, many_short_steps)), op_name


def test_adam_shares_many_parameters_and_not_few() -> None:
    torch.set_num_threads(2)
    call = clipped_adam_call()
    assert parts_of(call) == 1
    many = {name: [torch.ones(200_000)] * 2 for name in call.names[:4]}
    call.run(**many)
    assert torch.ops.dmm_fast._parts_of_last_op() == 2


# OpenMP threads do not survive a fork: a child would wait for threads that it does not have.
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes_after_its_parent_used_threads() -> None:
    small = [call for op_name in COMPILED for call in calls_of(op_name, SMALL)]
    small.append(clipped_adam_call())
    torch.set_num_threads(2)
    assert parts_of(calls_of("rnn_scan", LARGE)[0]) == 2
    child = os.fork()
    if child == 0:
        for call in small:
            call.run()
        os._exit(0)
    ends = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < ends:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
