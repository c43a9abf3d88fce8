"""Interleaved timing on a GPU: supported implementations, checks, profiles, and the precision of products."""

import gzip
import json
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import svi_step
from benchmarks.correctness import CheckResult, check
from benchmarks.gpu import interleaved
from benchmarks.gpu.interleaved import SUPPORTED, check_support, support_checks, time_agreeing
from benchmarks.gpu.profile import STEPS, profiled
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.implementations import BASELINE, CAPTURABLE, GRAPHED, OURS, starting_parameters
from benchmarks.peer_torch import TorchImplementation
from benchmarks.precision import IEEE, TF32, multiplied_in

CASE = svi_step(4, 6, rounds=2, quick=True)
OUR, PEER = OURS[0], TorchImplementation()
NAMES = {OUR.name}


class Forgets(BaselineDMM):
    """Does not anneal in the guide."""

    def guide(self, *args):
        super().guide(*args[:4], 1.0)


class Breaks:
    """An implementation that cannot be captured."""

    name, elbo = "breaks", OUR.elbo

    def setup(self, case, parameters):
        raise RuntimeError("operation not permitted when stream is capturing")


def forgetful(implementation):
    return replace(implementation, module=lambda sizes: Forgets(**sizes))


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, device="cpu", quick=True, end=time.monotonic() + 60.0)


def check_each(stage, *implementations):
    for unit in support_checks(stage, CASE, implementations, NAMES):
        unit.run()


def test_supported_implementations_that_agree_are_timed(stage):
    check_each(stage, BASELINE, OUR)
    time_agreeing(stage, "svi_step", CASE, [BASELINE, PEER, OUR], NAMES)
    rows = stage.record.found("cases")
    assert [(row["suite"], row["impl"]) for row in rows] == [
        ("svi_step", BASELINE.name),
        ("svi_step", OUR.name),
    ]
    assert set(rows[1]["extra"]["speed_up"]) == {BASELINE.name}
    assert {row["backend"] for row in stage.record.found("correctness")} == {BASELINE.name, OUR.name}


def test_an_implementation_that_cannot_step_is_recorded_and_ends_the_process(stage):
    with pytest.raises(ProcessSpentError) as raised:
        check_support(stage, CASE, Breaks(), needed=False)
    assert raised.value.args == ()
    with pytest.raises(ProcessSpentError, match="breaks could not step"):
        check_support(stage, CASE, Breaks(), needed=True)
    assert stage.record.found(SUPPORTED) == []
    assert "stream is capturing" in stage.record.found("not_run")[0]["why"]


def test_a_peer_that_disagrees_is_skipped_without_failure(stage):
    peer = replace(forgetful(BASELINE), name="peer")
    check_each(stage, BASELINE, peer, OUR)
    time_agreeing(stage, "svi_step", CASE, [BASELINE, peer, OUR], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name, OUR.name]
    assert all(row["ok"] for row in stage.record.found("correctness"))
    (left,) = stage.record.found("not_run")
    assert left["impl"] == "peer"
    assert "bound" in left["why"]


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("ok", [True, False])
def test_replays_are_timed_only_if_they_are_correct(stage, monkeypatch, ok, needed):
    def told(case, plain, replaying):
        return CheckResult("SVI step: worst loss", replaying.name, case.name, 0.5, 1e-4, ok)

    monkeypatch.setattr(interleaved, "compare_replays", told)
    check_each(stage, BASELINE, CAPTURABLE, GRAPHED)
    interleaved.compare(stage, CASE, CAPTURABLE, GRAPHED, needed)
    time_agreeing(stage, "svi_step", CASE, [BASELINE, GRAPHED], NAMES)
    timed = [row["impl"] for row in stage.record.found("cases")]
    assert timed == ([BASELINE.name, GRAPHED.name] if ok else [BASELINE.name])
    checked = [row["ok"] for row in stage.record.found("correctness") if row["op"] == "SVI step: worst loss"]
    assert checked == ([ok] if ok or needed else [])
    left = [(row["impl"], row["why"]) for row in stage.record.found("not_run")]
    assert left == ([] if ok else [(GRAPHED.name, "SVI step: worst loss: error 5.0e-01, bound 1.0e-04")])


def test_an_implementation_not_checked_in_time_is_recorded(stage):
    check_each(stage, BASELINE)
    time_agreeing(stage, "svi_step", CASE, [BASELINE, PEER], NAMES)
    assert [(row["impl"], row["why"]) for row in stage.record.found("not_run")] == [
        (PEER.name, "not checked in time")
    ]


def test_disagreement_in_tf32_is_skipped_without_failure(stage):
    wrong = replace(forgetful(BASELINE), name=OUR.name)
    check_each(stage, BASELINE, wrong)
    time_agreeing(stage, "svi_step", replace(CASE, precision=TF32), [BASELINE, wrong], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name]
    assert {row["backend"] for row in stage.record.found("correctness")} == {BASELINE.name}
    assert [row["impl"] for row in stage.record.found("not_run")] == [OUR.name]


def test_nothing_is_timed_when_a_baseline_disagrees(stage):
    wrong = replace(forgetful(BASELINE), name="tutorial mended")
    check_each(stage, wrong, OUR)
    time_agreeing(stage, "svi_step", CASE, [wrong, OUR], NAMES)
    assert stage.record.found("cases") == []
    assert {row["backend"] for row in stage.record.found("correctness") if not row["ok"]} == {wrong.name}


def test_disagreement_of_this_package_is_a_failure_and_the_others_are_timed(stage):
    wrong = replace(forgetful(BASELINE), name=OUR.name)
    check_each(stage, BASELINE, wrong, PEER)
    time_agreeing(stage, "svi_step", CASE, [BASELINE, wrong, PEER], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name, PEER.name]
    assert {row["backend"] for row in stage.record.found("correctness") if not row["ok"]} == {OUR.name}
    assert [row["impl"] for row in stage.record.found("not_run")] == [OUR.name]


def test_precision_is_set_and_restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, told in ((TF32, ("high", True)), (IEEE, ("highest", False))):
        with multiplied_in(precision):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == told
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_tf32_has_wider_bounds():
    check_results = {
        precision: check(replace(CASE, precision=precision), starting_parameters(CASE.sizes), [OUR])
        for precision in (IEEE, TF32)
    }
    bounds = {precision: {v.op: v.bound for v in of} for precision, of in check_results.items()}
    assert bounds[TF32] == {"SVI loss": 1e-3, "SVI gradients": 5e-3}
    assert bounds[IEEE]["SVI loss"] == 1e-5
    assert bounds[IEEE]["SVI gradients"] < 1e-4


def test_a_profile_counts_the_kernels_of_a_step(tmp_path):
    a = torch.randn(64, 64)

    def step():
        return a @ a @ a + 1.0

    trace = tmp_path / "trace.json.gz"
    found = profiled(step, "cpu", trace)
    counts = {kernel["name"]: kernel["count"] for kernel in found["kernels"]}
    assert counts["aten::mm"] == 2.0
    assert counts["aten::add"] == 1.0
    times = [kernel["us"] for kernel in found["kernels"]]
    assert times == sorted(times, reverse=True)
    assert found["busy_us"] == pytest.approx(sum(times))
    assert found["step_us"] > 0
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2 * STEPS
