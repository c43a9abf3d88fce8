"""Two processes compute what one does: losses, gradients, parameters after 50 steps, evaluations."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dmm_fast._share import Share, rows_of, sharing, spread_rows
from dmm_fast.distributions._sequence import standard_noise
from dmm_fast.infer import DataParallel
from dmm_fast.infer import _parallel_elbo as module
from tests.helpers_graph import RecordedGraphs, Run, assert_same_bits
from tests.helpers_model import make_batch
from tests.infer.parallel_cases import CASES

ROOT = Path(__file__).parents[2]
BOUNDS = {"float32": 1e-6}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    path = tmp_path_factory.mktemp("parallel") / "results"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "tests.infer.parallel_cases", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does(name: str, by_rank: list[dict[str, Any]]) -> None:
    alone = CASES[name](DataParallel())
    for results in by_rank:
        assert results[name].keys() == alone.keys()
        for key, value in alone.items():
            got = torch.as_tensor(results[name][key], dtype=torch.float64)
            want = torch.as_tensor(value, dtype=torch.float64)
            # Parameters absolutely, as they are small numbers; losses and gradients by their size.
            error = ((got - want) / want.abs().clamp(min=1)).abs().max()
            assert error <= BOUNDS.get(name, 1e-12), (key, error)


def test_processes_have_the_very_same_parameters(by_rank: list[dict[str, Any]]) -> None:
    one, other = (results["float32"] for results in by_rank)
    assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


def test_processes_go_on_to_draw_the_same_mini_batches(by_rank: list[dict[str, Any]]) -> None:
    one, other = (results["refusals"]["order"] for results in by_rank)
    assert one == other


def test_differences_between_processes_are_refused(by_rank: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(by_rank):
        messages = results["refusals"]
        assert messages["parameters"].startswith("parameters: expected the same values in all processes")
        assert messages["parameters"].endswith("got another one on rank 1 than on rank 0")
        assert messages["arguments"].startswith(
            "arguments: expected the same, whole mini-batch in all processes"
        )
        assert (messages["of_main"], messages["most"]) == ("0 0", "4")
        assert messages["outside"].startswith("site 'alone': expected a site within a plate of the 2 rows")
        for failing in ((0,), (1,), (0, 1)):
            if rank == failing[0]:
                assert messages[f"together {failing}"] == f"ValueError: rank {rank}"
            else:
                lost = f"RankLostError: processes: expected rank {failing[0]} to go on, got an error there"
                assert messages[f"together {failing}"] == lost


@pytest.mark.parametrize(("size", "total"), [(1, 3), (2, 5), (3, 3), (4, 2)])
def test_every_row_belongs_to_one_process(size: int, total: int) -> None:
    rows = torch.arange(total, dtype=torch.float64) + 1
    shares = [Share(rank, size, total) for rank in range(size)]
    assert all(share.num_rows == len(rows_of(rows, share)) >= 1 for share in shares)
    assert torch.equal(sum(spread_rows(rows_of(rows, share), share) for share in shares), rows)
    assert [share.is_empty for share in shares] == [rank >= total for rank in range(size)]


def test_rows_of_what_has_none_are_the_value_itself() -> None:
    share = Share(1, 2, 4)
    for value in (torch.ones(3, 4), torch.ones(()), 4, None, "rows"):
        assert rows_of(value, share) is value
    lengths = torch.tensor([2, 3, 1, 3])
    x = torch.arange(12.0).reshape(4, 3)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    rows, given = pad_packed_sequence(rows_of(packed, share), batch_first=True)
    assert given.tolist() == [3, 3]
    assert torch.equal(rows, x[1::2])


@pytest.mark.parametrize("Z", [2, 16])
def test_noise_of_a_share_is_that_of_its_rows(Z: int) -> None:
    def noise(B: int) -> torch.Tensor:
        torch.manual_seed(3)
        return standard_noise(torch.Size((2, B, 5, Z)), torch.zeros(()))

    whole = noise(7)
    for rank in range(3):
        share = Share(rank, 3, 7)
        with sharing(share):
            assert torch.equal(noise(share.num_rows), whole[:, share.rows])
            after = torch.rand(())
        noise(7)
        assert torch.equal(after, torch.rand(()))


def test_gradients_go_in_buckets_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKET_BYTES", 40)
    params = [torch.zeros(n, dtype=dtype) for n in (5, 20, 2) for dtype in (torch.float32, torch.float64)]
    for param in params:
        param.grad = torch.ones_like(param)
    params[-1].grad = None
    buckets = [[param for param, _ in bucket] for bucket in module._buckets(params)]
    assert {id(p) for bucket in buckets for p in bucket} == {id(p) for p in params[:-1]}
    assert all(len({p.dtype for p in bucket}) == 1 for bucket in buckets)
    assert all(len(bucket) == 1 or sum(p.nbytes for p in bucket) <= 40 for bucket in buckets)


def test_a_process_that_was_started_alone_is_left_as_it_was() -> None:
    elbo = Trace_ELBO()
    with DataParallel() as ranks:
        assert (ranks.rank, ranks.size, ranks.local_size, ranks.is_main) == (0, 1, 1, True)
        assert ranks.elbo(elbo) is elbo
        assert not torch.distributed.is_initialized()
        with pytest.raises(ZeroDivisionError), ranks.together():
            raise ZeroDivisionError


class FirstOfTwo(DataParallel):
    """Rank 0 of two processes, whose second has nothing to add."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def of_main(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def check_alike(self, name: str, expected: str, *values: object) -> None:
        pass


def test_a_graph_holds_the_rows_and_the_sums_of_a_step() -> None:
    def elbo() -> Any:
        return FirstOfTwo().elbo(Trace_ELBO())

    graphs = RecordedGraphs()
    ours, theirs = Run(graphs, elbo), Run(None, elbo)
    for seed in range(4):
        batch = (*make_batch((6, 4, 2, 1, 1), seed=seed), 0.1 + 0.1 * seed)
        assert ours.step(*batch) == theirs.step(*batch)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (1, 1, 3)
