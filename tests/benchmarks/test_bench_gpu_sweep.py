"""The plan sweep: the plans to time, their checks, and the written measurements."""

import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.draws import Sizes
from benchmarks.gpu import measure, plan_sweep
from benchmarks.gpu.stage import Stage
from dmm_fast.cuda import measured
from dmm_fast.cuda.devices import H100
from dmm_fast.cuda.plan import combiner_plans, rnn_plan, rnn_plans
from dmm_fast.ops.schema import OTHERS

SIZES = Sizes(B=2, T=3, D=5, Z=4, H=6, R=7, G=7, E=8)


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, device="cpu", quick=True, end=time.monotonic() + 60.0)


def test_the_best_plans_of_each_shape_are_timed():
    plans = plan_sweep.best_of_each_shape(list(rnn_plans(20, 600)), H100.shared_bytes, most=5)
    assert plans[0] == rnn_plan(20, 600)
    assert len({(*plan[:3], plan.exchange) for plan in plans}) == 5
    assert {plan.exchange for plan in plans} >= {"cluster", "memory"}
    assert [plan.step_cycles for plan in plans] == sorted(plan.step_cycles for plan in plans)
    assert all(plan.shared_bytes <= H100.shared_bytes for plan in plans)


RESULTS_OF_OP = {
    "rnn_scan": lambda a: a.x_proj @ a.w_hh + a.h_0[:, :, None],
    "rnn_scan_backward": lambda a: (a.dh * a.h @ a.w_hh, a.dh[:, :, 0]),
    "combiner_scan": lambda a: (
        (a.eps + a.z_q_0[:, :, None]) @ (a.w_loc @ a.w_z),
        a.base,
        a.eps @ a.w_z.mT + a.b_z,
        (a.eps @ a.w_z.mT + a.b_z) @ a.w_scale.mT,
    ),
    "combiner_scan_backward": lambda a: (
        a.g * (a.dloc @ a.w_loc + a.dpre_scale @ a.w_scale),
        a.g,
        torch.cat([a.dz, a.eps], -1) * a.lengths[:, None, None],
        a.pre_scale,
        a.g[:, :, 0] @ a.w_z,
    ),
}


@pytest.mark.parametrize("scan", RESULTS_OF_OP)
def test_a_plan_sweep_times_every_plan_and_writes_those_that_agree(scan, stage, monkeypatch):
    """Stand-ins for the ops use every argument; under one plan their last output is wrong."""
    asked = []

    def op(*, plan, **inputs):
        assert {*inputs, "plan"} == {argument.name for argument in OTHERS[f"_launch_{scan}"].flat_arguments}
        if plan not in asked:
            asked.append(plan)
        results = RESULTS_OF_OP[scan](SimpleNamespace(**inputs))
        *others, last = results if isinstance(results, tuple) else (results,)
        last = 1.001 * last if asked.index(plan) == 2 else last
        return (*others, last) if others else last

    monkeypatch.setattr(torch.ops.dmm_fast, f"_launch_{scan}", op, raising=False)
    monkeypatch.setattr(
        plan_sweep, "time_calls", lambda *called, seconds: measure.time_calls(*called, seconds=0.0)
    )
    before = measured.Measurement(measured.Case("rnn_scan", 1, 1), (1,) * 11, 1.0)
    measured.add(stage.out / plan_sweep.FILE, H100.name, [before])
    plan_sweep.sweep(stage, "scans", f"plan sweep of {scan}", scan, SIZES, H100)

    agree = [row["ok"] for row in stage.record.found("correctness")]
    assert agree == [n != 2 for n in range(len(asked))]
    assert 3 < len(asked) <= plan_sweep.MOST
    assert all(row["extra"]["us_per_step"] > 0 for row in stage.record.found("cases"))
    device, (kept, *timed) = measured.read(stage.out / plan_sweep.FILE)
    assert (device, kept) == (H100.name, before)
    assert [list(each.plan) for each in timed] == [plan for n, plan in enumerate(asked) if n != 2]
    backward = scan.endswith("_backward")
    sizes = (SIZES.B, SIZES.H) if scan.startswith("rnn") else (SIZES.B, SIZES.H, SIZES.Z)
    assert {each.case for each in timed} == {measured.Case(scan, *sizes)}
    plans = (rnn_plans if scan.startswith("rnn") else combiner_plans)(*sizes, H100, backward)
    assert {each.plan for each in timed} <= {tuple(plan.numbers) for plan in plans}


@pytest.mark.parametrize("scan", RESULTS_OF_OP)
def test_the_drawn_arguments_match_the_op_of_a_gpu(scan):
    inputs = plan_sweep._inputs(scan, SIZES, "cpu")
    with pytest.raises(NotImplementedError, match=f"dmm_fast::_launch_{scan}' with arguments from the 'CPU'"):
        getattr(torch.ops.dmm_fast, f"_launch_{scan}")(**inputs, plan=[1])
    if "w_hh" in inputs:
        assert inputs["w_hh"].abs().max() <= SIZES.H**-0.5


def test_the_error_of_a_plan_is_the_largest_of_its_outputs_or_nan():
    one, off = torch.ones(4), torch.full((4,), 1.5)
    assert plan_sweep.max_error((one, off), (one, one)) == 0.5
    assert (
        plan_sweep.max_error((one, off * torch.nan), (one, one))
        != plan_sweep.max_error((one, one), (one, one))
        == 0.0
    )


def test_without_kernels_a_plan_sweep_is_skipped(stage):
    plan_sweep.time_plans(stage, "scans", "rnn_scan_backward", SIZES)
    (row,) = stage.record.found("not_run")
    assert row["case"] == "plan sweep of rnn_scan_backward, B=2, H=6, Z=4, T=3"
    assert not (stage.out / plan_sweep.FILE).exists()
