"""Parts of the GPU stages: counts of operations, checks, times, and output of subprocesses."""

import signal
import sys
import time

import pyro
import pytest
import torch

from benchmarks import ROOT, commands, errors, exchange_floor
from benchmarks.cases import full_batch
from benchmarks.draws import Sizes, differentiable
from benchmarks.gpu import call_ops, measure, smoke
from benchmarks.gpu.calls import SCANS, Call, backends_of, by, every_op, reference_of
from benchmarks.gpu.stage import Stage, Unit, run_units
from benchmarks.gpu.stages import rowwise, scans, tests
from benchmarks.gpu.timed_case import check_results
from benchmarks.stepper import NoiseOfTheCpu, tutorial_noise
from dmm_fast import reference
from dmm_fast.cuda.devices import H100
from dmm_fast.cuda.plan import scan_plans

SIZES = Sizes(B=2, T=3, D=5, Z=4, H=6, R=7, G=7, E=8, K=2, F=3)
ROWS = 6


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path, device="cpu", quick=True, end=time.monotonic() + 60.0)


# --- units ------------------------------------------------------------------------------------------------


def test_without_time_only_required_units_run(tmp_path):
    late = Stage(tmp_path, device="cpu", end=time.monotonic() - 1.0)
    ran = []
    names = ("needed", "other")
    run_units(
        [Unit(name, lambda name=name: ran.append(name), overrun=name == "needed") for name in names], late
    )
    assert ran == ["needed"]
    assert [row["case"] for row in late.record.found("not_run")] == ["other"]


# --- operations and bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "flops", "numbers_in", "numbers_out"),
    [
        # 2 rows (Z R + R Z, twice, + 2 Z Z); the rows of z and all weights; loc and scale
        ("gated_transition", 2 * 6 * (4 * 28 + 32), 24 + 2 * (28 + 7 + 28 + 4) + 2 * (16 + 4), 48),
        # 2 rows (Z E + E E + E D); x, z, the weights; a sum for each of two sequences
        ("emission_log_prob", 2 * 6 * (32 + 64 + 40), 30 + 24 + 32 + 8 + 64 + 8 + 40 + 5, 2),
        # 2 rows H H; x_proj, w_hh, h_0; h
        ("rnn_scan", 2 * 6 * 36, 36 + 36 + 6, 36),
        # 2 rows (Z H + 2 H Z); h, eps, z_q_0, the weights; z, loc, pre_scale
        ("combiner_scan", 2 * 6 * 72, 36 + 24 + 4 + 24 + 6 + 2 * (24 + 4), 72),
        # and of each of 2 flows (Z F + 2 F Z); its weights too; log_det too
        (
            "flow_scan",
            2 * 6 * (72 + 2 * 36),
            36 + 24 + 4 + 24 + 6 + 2 * (24 + 4) + 2 * (12 + 3 + 2 * (12 + 4)),
            72 + 2,
        ),
        ("input_projection", 2 * 6 * 30, 30 + 30 + 6, 36),
        ("normal_log_prob", 0, 3 * 30, 2),
    ],
)
def test_flops_and_bytes_equal_a_count_by_hand(op, flops, numbers_in, numbers_out):
    call = Call(op, SIZES, "cpu")
    lengths = 8 * SIZES.B if "lengths" in call.inputs else 0
    assert call.flops() == flops
    forward = 4 * (numbers_in + numbers_out) + lengths
    assert call.bytes_forward() == forward
    # Backward: arguments and incoming gradients read, a gradient of every floating-point argument written.
    assert call.bytes_both() == 2 * forward + 4 * numbers_in


def test_the_optimizer_reads_and_writes_four_lists():
    call = Call("clipped_adam", SIZES, "cpu")
    numbers = sum(tensor.numel() for tensor in call.inputs["params"])
    assert (call.flops(), call.bytes_forward()) == (0, 2 * 4 * 4 * numbers)


def test_flops_of_a_step_equal_those_of_the_floor():
    from benchmarks import floor

    sizes = Sizes()
    counted = {op: Call(op, sizes, "cpu").flops() for op in ("rnn_scan", "combiner_scan")}
    maps = floor.linears(*floor.tutorial_sizes())
    for op, flops in counted.items():
        assert flops == sum(m.flops(sizes.B * sizes.T)[0] for m in maps if m.op == op)


# --- calls and checks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", every_op())
def test_every_backend_is_called_and_agrees(op):
    call = Call(op, errors.QUICK, "cpu")
    backends = backends_of(op, "cpu")
    assert backends[-1] == "reference"
    for name in backends:
        call.forward(by(name, op))()
        if call.wanted:
            gradients = call.both(by(name, op))()
            alone = call.backward(by(name, op))
            for again in (alone(), alone()):
                assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
        rows = check_results(call, "quick", name, by(name, op))
        assert [row.op for row in rows][:1] == [f"{op}: worst value"]
        assert all(row.ok for row in rows)


def test_a_separate_backward_has_leaves_of_its_own():
    """Otherwise, a capture of the same call on another stream would fail while the graph is alive."""
    call = Call("emitter", errors.QUICK, "cpu")
    call.backward(by("reference", "emitter"))
    timed = []

    def function(**inputs):
        timed.extend(differentiable(inputs).values())
        return by("reference", "emitter")(**inputs)

    call.backward(function)
    assert timed
    assert not {id(tensor) for tensor in timed} & {id(tensor) for tensor in call.wanted}
    assert not {t.data_ptr() for t in timed} & {t.data_ptr() for t in call.wanted}


@pytest.mark.parametrize(("factor", "wrong"), [(1.01, {"value", "gradient"}), (1 + 1e-4, {"value"})])
def test_a_failed_check_names_the_wrong_result(factor, wrong):
    call = Call("emitter", errors.QUICK, "cpu")
    rows = check_results(call, "quick", "b", lambda z, weights: factor * reference.emitter(z, weights))
    assert {row.op.rpartition(" ")[2] for row in rows if not row.ok} == wrong


def test_the_sanitizer_calls_every_op(capsys):
    assert call_ops.main(["--device", "cpu"]) == 0
    told = capsys.readouterr().out.split("\n")[:-2]
    able = [f"called {op}, {b}" for op in every_op() for b in backends_of(op, "cpu") if b != "reference"]
    assert sorted(told) == sorted(able)


def test_a_failed_call_is_reported_and_the_others_continue(capsys, monkeypatch):
    monkeypatch.setattr(call_ops, "every_op", lambda: ["emitter", "nonsense", "combiner"])
    monkeypatch.setattr(call_ops, "backends_of", lambda op, device: ["some", "reference"])
    monkeypatch.setattr(call_ops, "by", lambda name, op: reference_of(op))
    assert call_ops.main(["--device", "cpu"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "cF"]
    assert [line.split(",")[0] for line in lines] == [
        "called combiner",
        "called emitter",
        "FAILED nonsense",
    ]


def test_a_rowwise_op_is_checked_and_then_timed(stage, monkeypatch):
    rowwise.time_op(stage, "emitter", errors.QUICK, "reference")
    wrong = by("reference", "emitter")
    monkeypatch.setattr(rowwise, "by", lambda name, op: lambda **given: 1.01 * wrong(**given))
    rowwise.time_op(stage, "emitter", errors.QUICK, "wrong")
    timed = [(row["case"], row["impl"]) for row in stage.record.found("cases")]
    case = "emitter, B=3, T=5"
    assert timed == [(f"{case}, forward", "reference"), (f"{case}, forward and backward", "reference")]
    assert stage.record.found("not_run") == [{"case": case, "impl": "wrong", "why": "beyond its bound"}]
    assert not any(row["ok"] for row in stage.record.found("correctness"))


def test_rowwise_ops_are_all_ops_except_for_the_scans(stage):
    names = [unit.name for unit in rowwise.units(stage)]
    assert {name.split(",")[0] for name in names} == set(every_op()) - set(SCANS)
    # Compilation comes last.
    compiled = [rowwise.COMPILED in name for name in names]
    assert compiled == sorted(compiled)
    assert sum(compiled) == len(every_op()) - len(SCANS)


def test_time_calls_by_the_wall_clock():
    calls = []
    samples = measure.time_calls(lambda: calls.append(time.sleep(0.002)), "cpu", seconds=0.02)
    assert measure.LEAST_ROUNDS <= len(samples.ms) <= 10
    assert min(samples.ms) >= 2.0
    assert len(calls) > len(samples.ms)


def test_a_long_call_is_not_repeated_further():
    calls = []
    samples = measure.time_calls(lambda: calls.append(time.sleep(0.02)), "cpu", seconds=0.1)
    assert measure.LEAST_ROUNDS <= len(samples.ms) <= 4
    assert len(calls) == 2 + len(samples.ms)


def test_several_launches_are_timed_in_one_graph(monkeypatch):
    ran = []
    monkeypatch.setattr(measure, "capture", lambda step: step)
    monkeypatch.setattr(measure, "_rounds", lambda step, device, n: [step() or 40.0 for _ in range(n)])
    samples = measure.time_launches(lambda: ran.append(1), together=4, rounds=2)
    assert samples.ms == (10.0, 10.0)
    assert len(ran) == 4 * (1 + 2)


def test_scans_begin_with_the_fastest_backend(stage, monkeypatch):
    monkeypatch.setattr(scans, "runnable", lambda op, *given: ["cuda", "triton", "reference"])
    names = [unit.name for unit in scans.units(stage)]
    kinds = ["cuda" if name.endswith(", cuda") else name.split(",")[0].split(" of ")[0] for name in names]
    slow = [*["rnn_scan"] * 2, *["combiner_scan"] * 2, *["flow_scan"] * 2]
    assert kinds == [*["cuda"] * 3, "nn.RNN", *["floor"] * 10, *slow, *["plan sweep"] * 4]


# --- the exchange floor, simulated on the CPU -------------------------------------------------------------


def floor_like_the_op(rings, steps, cluster_size, threads, store="async_b32", giving_warps=0):
    """Turn the rings as the op does, and check its arguments."""
    vector = {"async_b32": 1, "async_v2": 2, "async_v4": 4, "words": 3}[store]
    assert rings.shape[1] % (cluster_size * vector) == 0
    assert threads % 32 == 0
    assert 0 <= giving_warps <= threads // 32
    return rings.roll(-steps, 1)


@pytest.fixture
def with_floor(monkeypatch):
    def use(op, device=H100):
        monkeypatch.setattr(torch.ops.dmm_fast_benchmarks, "exchange_floor", op, raising=False)
        monkeypatch.setattr(exchange_floor, "missing", lambda device: None)
        monkeypatch.setattr(exchange_floor, "raise_on_hang", lambda: None)
        monkeypatch.setattr(scans, "cuda_device", lambda index: device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))

    return use


def test_every_variant_of_the_floor_is_checked_and_timed(stage, with_floor):
    with_floor(floor_like_the_op)
    sizes = Sizes(T=3)
    scans.time_floors(stage, 16, sizes)
    for scan in scan_plans(1, 1, 1):
        scans.time_floor_of_plan(stage, scan, sizes)
        scans.time_floor_of_plan(stage, scan, sizes, by_memory=True)
    rows = stage.record.found("cases")
    variants = {row["impl"] for row in rows if "clusters of 16" in row["case"]}
    assert len(variants) == len(smoke.FLOOR_STORES) * len(scans.WARPS)
    # Seven clusters of 16 run concurrently: 3 rows each, 38 units per block, rounded up to a multiple of 4.
    told = rows[0]["extra"]
    assert (told["clusters"], told["rows_a_cluster"], told["width"]) == (7, 3, 116)
    assert len(rows) == len(variants) + 8
    assert sum(row["impl"] == "words, 256 threads" for row in rows) == 4
    checks = stage.record.found("correctness")
    assert len(checks) == len(rows)
    assert all(row["ok"] for row in checks)
    assert smoke.check_floor("cpu")["ok"]


def test_a_wrong_floor_fails_its_check(stage, with_floor):
    with_floor(lambda rings, steps, *arguments: rings)
    scans.time_floors(stage, 8, Sizes(T=3))
    assert not any(row["ok"] for row in stage.record.found("correctness"))
    found = smoke.check_floor("cpu")
    assert not found["ok"]
    assert "async_v4, 129 steps" in found["worst"]


def test_a_hang_of_the_floor_fails_it(with_floor, monkeypatch):
    with_floor(floor_like_the_op)
    hang = RuntimeError("block 3 timed out")
    monkeypatch.setattr(exchange_floor, "raise_on_hang", lambda: (_ for _ in ()).throw(hang))
    found = smoke.check_floor("cpu")
    assert (found["ok"], found["hang"]) == (False, "block 3 timed out")


def test_without_the_floor_the_run_records_why_and_continues(stage, with_floor, monkeypatch):
    with_floor(floor_like_the_op)
    monkeypatch.setattr(exchange_floor, "missing", lambda device: "_floor.so is not built")
    assert smoke.check_floor("cpu") == {"worst": "_floor.so is not built"}
    scans.time_floors(stage, 8, Sizes(T=3))
    scans.time_floor_of_plan(stage, "rnn_scan", Sizes(T=3))
    assert [row["why"] for row in stage.record.found("not_run")] == ["_floor.so is not built"] * 2
    assert stage.record.found("cases") == []


def test_clusters_that_do_not_run_here_are_recorded(stage, with_floor):
    with_floor(floor_like_the_op, H100._replace(clusters=(132, 66, 33, 15, 0)))
    scans.time_floors(stage, 16, Sizes(T=3))
    (row,) = stage.record.found("not_run")
    assert row["why"] == "no cluster of 16 blocks runs on this GPU"


# --- noise --------------------------------------------------------------------------------------------------


def test_noise_does_not_depend_on_how_it_is_drawn():
    def drawn(draw):
        pyro.set_rng_seed(3)
        with NoiseOfTheCpu():
            return draw()

    step_by_step = drawn(lambda: torch.stack([torch.empty(3, 5).normal_() for _ in range(4)]))
    at_once = drawn(lambda: torch.empty(4, 3, 5).normal_())
    batch = full_batch(3, 4)
    assert torch.equal(at_once, step_by_step)
    assert torch.equal(at_once, tutorial_noise(batch, 5, seed=3))
    # Otherwise the draws differ, as the 15 numbers of a step are not a multiple of 16.
    pyro.set_rng_seed(3)
    assert not torch.equal(torch.empty(4, 3, 5).normal_(), step_by_step)


# --- output of subprocesses -----------------------------------------------------------------------------


def test_failing_tests_fail_the_stage_and_are_named(stage, monkeypatch, tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    words = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-n", "0"]
    monkeypatch.setattr(tests, "command", lambda stage, paths: [*words, *paths])
    with pytest.raises(RuntimeError, match="1 failed, 1 passed"):
        tests.run_tests(stage, "it", [str(path)])
    (detail,) = stage.record.found("detail")
    failed, counts = detail["tests: it"]
    assert "::test_bad" in failed
    assert "1 failed, 1 passed in" in counts


def test_every_gpu_test_runs_once_with_kernels_and_graphs_first(stage):
    full = Stage(stage.out, device="cpu", end=stage.end)
    assert [unit.name for unit in tests.units(full)] == [f"pytest, {name}" for name in tests.RUNS]
    assert list(tests.units(stage)) == []  # a dry run only tests the stages
    first, *_ = paths = [path for run in tests.RUNS.values() for path in run]
    assert first == "tests/gpu/test_graphed.py"
    of_gpu = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert sorted(paths) == sorted({*of_gpu, "tests/ops/test_table.py"} - {"tests/gpu/test_compiled.py"})
    assert tests.command(full, ["a", "b"])[-2:] == ["a", "b"]


@pytest.mark.parametrize("in_the_background", [False, True])
def test_a_hanging_program_is_interrupted_and_its_output_is_kept(request, in_the_background):
    before = signal.getsignal(signal.SIGINT)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    signal.signal(signal.SIGINT, signal.SIG_IGN if in_the_background else signal.default_int_handler)
    program = (
        "import time\nprint('begun', flush=True)\ntry: time.sleep(99)\nexcept KeyboardInterrupt: print('bye')"
    )
    ended = commands.run([sys.executable, "-c", program], 2.0, show=False)
    assert ended.status is None
    assert ended.output.split() == ["begun", "bye"]
    assert ended.describe().splitlines() == ["begun", "bye", "timed out; last line: bye"]


def test_the_time_limit_of_a_program_starts_when_it_is_ready(tmp_path):
    program = "import time\ntime.sleep(1.5)\nprint('ready', flush=True)\n"
    run = [sys.executable, "-c", program + "time.sleep(0.2)"]
    assert commands.run(run, 1.0, show=False, ready="ready", starting=30.0).status == 0
    hangs = commands.run(
        [sys.executable, "-c", program + "time.sleep(60)"], 0.5, ready="ready", starting=30.0
    )
    assert hangs.status is None
    assert hangs.output.startswith("ready\n")
    assert commands.run(run, 30.0, show=False, ready="ready", starting=0.5).status is None
    log = tmp_path / "log"
    for word in ("first", "second"):
        assert commands.run(["echo", word], 5.0, log=log).output == f"{word}\n"
    assert log.read_text() == "first\nsecond\n"
