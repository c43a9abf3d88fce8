"""The flops of the floor equal PyTorch's count."""

import warnings

import pytest
from pyro.infer import Trace_ELBO
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor
from benchmarks.baseline import BaselineDMM
from benchmarks.cases import QUICK_SIZES, full_batch
from dmm_fast import use_backend
from dmm_fast.model import DMM
from dmm_fast.nn import NotFusedWarning


@pytest.mark.parametrize("module", [BaselineDMM, DMM])
def test_flops_equal_the_count_of_pytorch(module):
    B, T = 3, 5
    dmm = module(**QUICK_SIZES)
    # PyTorch counts its own products only, not those of a compiled op, by hooks on all modules.
    with FlopCounterMode(display=False) as counter, use_backend("reference"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotFusedWarning)
        Trace_ELBO().loss_and_grads(dmm.model, dmm.guide, *full_batch(B, T))
    sizes = [QUICK_SIZES[f"{name}_dim"] for name in ("z", "emission", "transition", "rnn")]
    counted = sum(sum(m.flops(B * T)) for m in floor.linears(88, *sizes))
    assert counted == counter.get_total_flops()


def test_prints_the_floor(capsys):
    assert floor.main(["--batch", "1", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "exchanges: 2 scans, forward and backward, 2 steps each: 8" in out
    assert "GFLOP/s, floor" in out


def test_tutorial_sizes():
    assert floor.tutorial_sizes() == (88, 100, 100, 200, 600)
