"""The smoke test of the kernels: failures are described, and their ops computed by another backend."""

import json
import math

import pytest

from benchmarks.gpu import smoke
from benchmarks.gpu.calls import runnable
from benchmarks.gpu.record import Record
from benchmarks.gpu.smoke import EVERY, KERNELS, Kernel, fall_back
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages import smoke as stage_of_smoke
from benchmarks.report.smoke import replaced_sentence, smoke_table, summary
from dmm_fast import ops, reference
from dmm_fast.ops import _backends

ROW = dict.fromkeys(smoke.ROW) | {"kernel": "rnn_scan forward", "op": "rnn_scan", "backend": "cpp"}


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "rows.jsonl")


def wrong(op, change):
    """The reference of an op with a changed first output."""

    def function(**inputs):
        outputs = getattr(reference, op)(**inputs)
        first, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        changed = change(first.clone())
        return (changed, *others) if others else changed

    return function


def checked(monkeypatch, kernel, change):
    monkeypatch.setattr(smoke, "by", lambda name, op: wrong(op, change))
    return smoke.check(kernel, "cpu", quick=True)


def test_every_op_with_a_cuda_kernel_is_tested():
    held = _backends._implementations.items()
    assert {kernel.op for kernel in KERNELS.values()} == {op for op, by in held if "cuda" in by}
    assert {kernel.backward for kernel in KERNELS.values() if kernel.op == "rnn_scan"} == {True, False}


@pytest.mark.parametrize("name", EVERY)
def test_correct_kernels_pass(name, capsys):
    assert smoke.main([name, "--device", "cpu", "--quick"]) == 0
    *ready, line = capsys.readouterr().out.splitlines()
    assert ready == ([] if name == "exchange_floor" else [smoke.READY])
    row = json.loads(line.removeprefix(smoke.RESULT))
    assert (row["kernel"], row["first_bad"]) == (name, None)
    assert row["ok"] is (None if name == "exchange_floor" else True)  # not available on a CPU
    assert {*smoke.ROW, "kernel", "op", "backend"} == set(row)


def test_large_batches_use_tensor_cores_where_allowed():
    from dmm_fast.cuda.plan import combiner_plan, rnn_plan
    from dmm_fast.cuda.rnn_bf16 import Bf16Tiling

    (case,) = smoke.cases(KERNELS["rnn_scan forward, tf32"], quick=False)
    B, _, H = case["x_proj"].shape
    (case,) = smoke.cases(KERNELS["combiner_scan forward, tf32"], quick=False)
    Z = case["eps"].shape[-1]
    for backward in (False, True):
        assert rnn_plan(B, H, backward=backward, tf32=True).tilings[0].tensor_tiles
        in_bf16 = rnn_plan(B, H, backward=backward, tf32=True, bf16=True)
        assert isinstance(in_bf16.tilings[0], Bf16Tiling)
        assert combiner_plan(B, H, Z, backward=backward, tf32=True).tilings[0].tensor_tiles


@pytest.mark.parametrize(("descending", "first"), [(True, 3), (False, 1)])
def test_the_first_bad_element_is_the_earliest_computed(monkeypatch, descending, first):
    def change(h):
        h[0, 3, 4] += 0.1
        h[0, 1, 2] += 0.1
        return h

    row = checked(monkeypatch, Kernel("rnn_scan", descending=descending), change)
    assert not row["ok"]
    assert row["first_bad"] == {"row": 0, "t": first, "unit": {3: 4, 1: 2}[first]}
    assert [error > 1e-3 for error in row["by_step"]] == [False, True, False, True, False]


def test_nan_is_counted_and_fails(monkeypatch):
    def change(h):
        h[1, :2] = math.nan
        return h

    row = checked(monkeypatch, Kernel("rnn_scan", descending=True), change)
    assert (row["ok"], row["error"], row["nan"]) == (False, None, 12)
    assert row["first_bad"] == {"row": 1, "t": 1, "unit": 0}
    assert row["by_step"][:2] == [None, None]


def test_a_uniformly_small_error_fails_too(monkeypatch):
    row = checked(monkeypatch, Kernel("combiner_scan"), lambda z: z * (1 + 3e-5))
    assert not row["ok"]
    assert row["worst"] == "value 0"
    assert set(row["first_bad"]) == {"row", "t", "unit"}


def test_a_wrong_gradient_is_detected(monkeypatch):
    row = checked(monkeypatch, Kernel("rnn_scan", backward=True), lambda h: 2.0 * h - h.detach())
    assert not row["ok"]
    assert row["worst"] == "gradient of x_proj"
    assert row["first_bad"]["t"] == 0


def test_a_hang_fails_regardless_of_the_result(monkeypatch):
    hang = RuntimeError("block 3")
    monkeypatch.setattr(smoke._extension, "raise_on_hang", lambda: (_ for _ in ()).throw(hang))
    row = smoke.check(Kernel("rnn_scan"), "cpu", quick=True)
    assert (row["ok"], row["hang"]) == (False, "block 3")


def test_a_failed_op_is_computed_by_the_next_backend(record):
    record.add("smoke", {**ROW, "ok": True, "op": "combiner_scan"})
    record.add("smoke", {**ROW, "ok": False})
    record.add("smoke", {**ROW, "ok": False, "op": "exchange_floor", "backend": "cuda"})
    for name in EVERY:
        record.add("smoke", {**ROW, "ok": True, "kernel": name, "op": "emitter"})
    try:
        fall_back(record, "cpu")
        assert record.replaced == {"rnn_scan": "reference"}
        assert _backends.chosen("rnn_scan", "cpu") == "reference"
        assert _backends.chosen("combiner_scan", "cpu") == "cpp"
        with ops.use_backend("cpp"):  # a benchmark can still select the failed backend
            assert _backends.chosen("rnn_scan", "cpu") == "cpp"
        assert runnable("rnn_scan", "cpu", record) == ["reference"]
        assert runnable("combiner_scan", "cpu", record) == ["cpp", "reference"]
    finally:
        ops.use_backend(None)


def test_a_kernel_without_a_result_has_failed(record):
    for name in EVERY:
        if name != "combiner_scan backward":
            record.add("smoke", smoke.row_of(name, "cpu") | {"ok": True})
    try:
        fall_back(record, "cpu")
        (row,) = record.failed_kernels()
        assert (row["kernel"], row["failed"]) == (
            "combiner_scan backward",
            "its process died without a result",
        )
        assert record.replaced == {"combiner_scan": "reference"}
    finally:
        ops.use_backend(None)


PROGRAMS = {
    "crashes": ("import os; print('ready', flush=True); os.abort()", "killed by SIGABRT; last line: ready"),
    "hangs": ("import time; print('ready', flush=True); time.sleep(60)", "timed out; last line: ready"),
    "says nothing": ("pass", "exit status 0"),
    "raises": ("1 / 0", "exit status 1; last line: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_process_that_ends_without_a_result_gets_a_row(monkeypatch, tmp_path, how):
    program, expected = PROGRAMS[how]
    monkeypatch.setattr(stage_of_smoke, "SECONDS", 0.5)
    real = stage_of_smoke.run

    def run(command, *args, **options):
        return real([command[0], "-c", program], *args, **options)

    monkeypatch.setattr(stage_of_smoke, "run", run)
    row = stage_of_smoke.run_kernel(Stage(tmp_path, device="cpu", quick=True), "rnn_scan forward")
    assert (row["ok"], row["op"], row["backend"]) == (False, "rnn_scan", "cpp")
    assert f"rnn_scan forward: {expected}" in smoke_table([row]).splitlines()


# --- output ---------------------------------------------------------------------------------------------


def test_the_output_ends_with_the_smoke_table_and_the_longest_kernels():
    bad = {**ROW, "ok": False, "error": 0.5, "bound": 1e-6, "nan": 3, "worst": "h", "seconds": 1.0}
    bad |= {"first_bad": {"row": 1, "t": 2, "unit": 3}, "by_step": [1e-7, None, *[1e-3] * 14]}
    bad |= {"hang": "rnn_scan: block 3 gave up a wait", "failed": "a\nTraceback\nlast line"}
    kernels = [{"name": f"k{n}", "count": 1.0, "us": 100.0 - n} for n in range(40)]
    profile = {"impl": "graphed", "case": "c", "step_us": 700.0, "busy_us": 650.0, "kernels": kernels}
    stages = [{"name": "smoke", "ok": False, "seconds": 1.0, "error": "failed"}]
    rows = [bad, *({**ROW, "ok": True, "kernel": name} for name in EVERY)]
    text = summary({"stages": stages, "smoke": rows, "profiles": [profile, profile]})
    last = text.splitlines()[-60:]
    assert sum("| `k" in line for line in last) == 15
    for told in (
        "| rnn_scan forward | cpp | **BAD** | h | 5.0e-01 | 1.0e-06 | 3 | 1 |",
        "rnn_scan forward: first bad: row 1, t 2, unit 3",
        "rnn_scan forward: error by step: t=0..1 not finite, t=2..3 1e-03",
        "rnn_scan forward: rnn_scan: block 3 gave up a wait",
        "rnn_scan forward: last line",
    ):
        assert any(line.startswith(told) for line in last), told
    assert smoke_table([]) == ""


def test_the_report_names_replaced_ops():
    none = {"cases": [{}], "correctness": [], "profiles": []}
    assert replaced_sentence(none) == ""
    some = {**none, "cases": [{}, {"replaced": {"rnn_scan": "triton"}}]}
    assert "`rnn_scan` by triton" in replaced_sentence(some)
