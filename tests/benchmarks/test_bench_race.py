"""Who is let into a race on a GPU, who is timed, what a profile shows; and what products are computed in."""

import gzip
import json
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.baseline import BaselineDMM
from benchmarks.cases import svi_step
from benchmarks.contestants import BASELINE, CAPTURABLE, GRAPHED, OURS, starting_parameters
from benchmarks.correctness import Verdict, check
from benchmarks.gpu import race as race_module
from benchmarks.gpu.profile import STEPS, profiled
from benchmarks.gpu.race import ADMITTED, admissions, admit, race
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.peer_torch import TorchContestant
from benchmarks.precision import IEEE, TF32, multiplied_in

CASE = svi_step(4, 6, rounds=2, quick=True)
OUR, PEER = OURS[0], TorchContestant()
NAMES = {OUR.name}


class Forgets(BaselineDMM):
    """Anneals nothing."""

    def guide(self, *args):
        super().guide(*args[:4], 1.0)


class Breaks:
    """Cannot be captured."""

    name, elbo = "breaks", OUR.elbo

    def setup(self, case, parameters):
        raise RuntimeError("operation not permitted when stream is capturing")


def forgetful(contestant):
    return replace(contestant, module=lambda sizes: Forgets(**sizes))


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, device="cpu", quick=True, end=time.monotonic() + 60.0)


def let_in(stage, *contestants):
    for unit in admissions(stage, CASE, contestants, NAMES):
        unit.run()


def test_who_was_let_in_and_agrees_is_timed(stage):
    let_in(stage, BASELINE, OUR)
    race(stage, "svi_step", CASE, [BASELINE, PEER, OUR], NAMES)
    rows = stage.record.found("cases")
    assert [(row["suite"], row["impl"]) for row in rows] == [
        ("svi_step", BASELINE.name),
        ("svi_step", OUR.name),
    ]
    assert set(rows[1]["extra"]["speed_up"]) == {BASELINE.name}
    assert {row["backend"] for row in stage.record.found("correctness")} == {BASELINE.name, OUR.name}


def test_who_cannot_step_is_named_and_ends_the_process(stage):
    with pytest.raises(ProcessSpentError) as raised:
        admit(stage, CASE, Breaks(), needed=False)
    assert raised.value.args == ()
    with pytest.raises(ProcessSpentError, match="breaks could not step"):
        admit(stage, CASE, Breaks(), needed=True)
    assert stage.record.found(ADMITTED) == []
    assert "stream is capturing" in stage.record.found("not_run")[0]["why"]


def test_a_peer_that_disagrees_is_left_out_and_no_more(stage):
    peer = replace(forgetful(BASELINE), name="peer")
    let_in(stage, BASELINE, peer, OUR)
    race(stage, "svi_step", CASE, [BASELINE, peer, OUR], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name, OUR.name]
    assert all(row["ok"] for row in stage.record.found("correctness"))
    (left,) = stage.record.found("not_run")
    assert left["impl"] == "peer"
    assert "bound" in left["why"]


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("ok", [True, False])
def test_who_replays_is_timed_only_if_its_replays_are_right(stage, monkeypatch, ok, needed):
    def told(case, plain, replaying):
        return Verdict("SVI step: worst loss", replaying.name, case.name, 0.5, 1e-4, ok)

    monkeypatch.setattr(race_module, "compare_replays", told)
    let_in(stage, BASELINE, CAPTURABLE, GRAPHED)
    race_module.compare(stage, CASE, CAPTURABLE, GRAPHED, needed)
    race(stage, "svi_step", CASE, [BASELINE, GRAPHED], NAMES)
    timed = [row["impl"] for row in stage.record.found("cases")]
    assert timed == ([BASELINE.name, GRAPHED.name] if ok else [BASELINE.name])
    checked = [row["ok"] for row in stage.record.found("correctness") if row["op"] == "SVI step: worst loss"]
    assert checked == ([ok] if ok or needed else [])
    left = [(row["impl"], row["why"]) for row in stage.record.found("not_run")]
    assert left == ([] if ok else [(GRAPHED.name, "SVI step: worst loss: error 5.0e-01, bound 1.0e-04")])


def test_who_was_not_in_time_is_named(stage):
    let_in(stage, BASELINE)
    race(stage, "svi_step", CASE, [BASELINE, PEER], NAMES)
    assert [(row["impl"], row["why"]) for row in stage.record.found("not_run")] == [
        (PEER.name, "not admitted within its time")
    ]


def test_in_tf32_who_disagrees_is_left_out_and_no_error(stage):
    wrong = replace(forgetful(BASELINE), name=OUR.name)
    let_in(stage, BASELINE, wrong)
    race(stage, "svi_step", replace(CASE, precision=TF32), [BASELINE, wrong], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name]
    assert {row["backend"] for row in stage.record.found("correctness")} == {BASELINE.name}
    assert [row["impl"] for row in stage.record.found("not_run")] == [OUR.name]


def test_nothing_is_timed_when_a_baseline_disagrees(stage):
    wrong = replace(forgetful(BASELINE), name="tutorial mended")
    let_in(stage, wrong, OUR)
    race(stage, "svi_step", CASE, [wrong, OUR], NAMES)
    assert stage.record.found("cases") == []
    assert {row["backend"] for row in stage.record.found("correctness") if not row["ok"]} == {wrong.name}


def test_one_of_ours_that_disagrees_is_an_error_and_the_others_are_timed(stage):
    wrong = replace(forgetful(BASELINE), name=OUR.name)
    let_in(stage, BASELINE, wrong, PEER)
    race(stage, "svi_step", CASE, [BASELINE, wrong, PEER], NAMES)
    assert [row["impl"] for row in stage.record.found("cases")] == [BASELINE.name, PEER.name]
    assert {row["backend"] for row in stage.record.found("correctness") if not row["ok"]} == {OUR.name}
    assert [row["impl"] for row in stage.record.found("not_run")] == [OUR.name]


def test_products_are_computed_as_asked_and_as_before_after():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for precision, told in ((TF32, ("high", True)), (IEEE, ("highest", False))):
        with multiplied_in(precision):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == told
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_tf32_is_held_to_what_tf32_can():
    verdicts = {
        precision: check(replace(CASE, precision=precision), starting_parameters(CASE.sizes), [OUR])
        for precision in (IEEE, TF32)
    }
    bounds = {precision: {v.op: v.bound for v in of} for precision, of in verdicts.items()}
    assert bounds[TF32] == {"SVI loss": 1e-3, "SVI gradients": 5e-3}
    assert bounds[IEEE]["SVI loss"] == 1e-5
    assert bounds[IEEE]["SVI gradients"] < 1e-4


def test_a_profile_counts_what_a_step_runs(tmp_path):
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
