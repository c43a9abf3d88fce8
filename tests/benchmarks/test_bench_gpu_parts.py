"""What the GPU suite's stages are made of: counts, shares, checks, reports of other programs."""

import signal
import sys
import time

import pyro
import pytest
import torch

from benchmarks import errors
from benchmarks.cases import full_batch
from benchmarks.errors import Sizes
from benchmarks.gpu import ceilings, commands, exercise, measure
from benchmarks.gpu.agreement import Agreement
from benchmarks.gpu.calls import Call, backends_of, by, every_op, reference_of
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.record import Record, of_kind, read
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages import build, derivatives, rowwise, sanitizer, tests
from benchmarks.racer import NoiseOfTheCpu, tutorial_noise
from dmm_fast import ops, reference

SIZES = Sizes(B=2, T=3, D=5, Z=4, H=6, R=7, E=8)
ROWS = 6


@pytest.fixture
def stage(tmp_path):
    return Stage(Record(tmp_path / "rows.jsonl"), tmp_path, "cpu", time.monotonic() + 60.0, quick=True)


# --- how much there is to do ----------------------------------------------------------------------------


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
        ("input_projection", 2 * 6 * 30, 30 + 30 + 6, 36),
        ("normal_log_prob", 0, 3 * 24, 2),
    ],
)
def test_flops_and_bytes_are_those_of_a_count_by_hand(op, flops, numbers_in, numbers_out):
    call = Call(op, SIZES, "cpu")
    lengths = 8 * SIZES.B if "lengths" in call.inputs else 0
    assert call.flops() == flops
    forward = 4 * (numbers_in + numbers_out) + lengths
    assert call.bytes_forward() == forward
    # Read again, with what comes in for each output; a gradient for each number that is no length.
    assert call.bytes_both() == 2 * forward + 4 * numbers_in


def test_the_optimizer_reads_and_writes_four_lists():
    call = Call("clipped_adam", SIZES, "cpu")
    numbers = sum(tensor.numel() for tensor in call.inputs["params"])
    assert (call.flops(), call.bytes_forward()) == (0, 2 * 4 * 4 * numbers)


def test_flops_of_a_step_are_the_floor_s():
    from benchmarks import floor

    sizes = Sizes()
    counted = {op: Call(op, sizes, "cpu").flops() for op in ("rnn_scan", "combiner_scan")}
    maps = floor.linears(*floor.tutorial_sizes())
    for op, flops in counted.items():
        assert flops == sum(m.flops(sizes.B * sizes.T)[0] for m in maps if m.op == op)


def test_the_share_is_of_whatever_binds():
    peaks = Ceilings(bytes_per_second=1e9, flops_per_second=1e12)
    bound_by_bytes = peaks.share(nbytes=2_000_000, flops=10, ms=4.0)
    assert bound_by_bytes == {"bytes": 2_000_000, "flops": 10, "floor_ms": 2.0, "share": 0.5}
    bound_by_flops = peaks.share(nbytes=8, flops=10**9, ms=4.0)
    assert (bound_by_flops["floor_ms"], bound_by_flops["share"]) == (1.0, 0.25)
    unknown = Ceilings().share(8, 10, 4.0)
    assert (unknown["floor_ms"], unknown["share"]) == (None, None)


def test_ceilings_are_read_from_the_run_itself(tmp_path):
    path = tmp_path / "results.json"
    assert ceilings.measured(path) == Ceilings()
    path.write_text(
        '{"cases": [{"suite": "ceilings", "case": "copy", "extra": {"per_second": 3.0}},'
        ' {"suite": "rowwise", "case": "copy", "extra": {}}]}'
    )
    assert ceilings.measured(path) == Ceilings(3.0, None)


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
        verdicts = Agreement(call, "quick").verdicts(name, by(name, op))
        assert [v.op for v in verdicts][:1] == [f"{op}: worst value"]
        assert all(v.ok for v in verdicts)


@pytest.mark.parametrize(("factor", "wrong"), [(1.01, {"value", "gradient"}), (1 + 1e-4, {"value"})])
def test_agreement_tells_who_is_wrong(factor, wrong):
    agreement = Agreement(Call("emitter", errors.QUICK, "cpu"), "quick")
    verdicts = agreement.verdicts("b", lambda z, weights: factor * reference.emitter(z, weights))
    assert {v.op.rpartition(" ")[2] for v in verdicts if not v.ok} == wrong


@pytest.mark.parametrize("op", ["emission_log_prob", "rnn_scan", "transition_kl"])
def test_the_derivative_along_a_direction_is_that_of_the_gradient(op):
    assert derivatives.directional_error(op, by(ops.info()["ops"][op]["cpu"], op), "cpu") < 1e-6


def test_a_wrong_gradient_shows_along_a_direction():
    def halved(z_prev, weights):
        loc, scale = reference_of("gated_transition")(z_prev, weights)
        return 0.5 * (loc + loc.detach()), scale

    assert derivatives.directional_error("gated_transition", halved, "cpu") > 1e-2


def test_everything_is_exercised_for_the_sanitizer(capsys):
    assert exercise.main(["--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    able = [f"exercised {op}, {b}" for op in every_op() for b in backends_of(op, "cpu") if b != "reference"]
    assert told == able


def test_parts_make_the_whole_of_the_jobs():
    everything = exercise.jobs(True)
    assert set(exercise.jobs(False)) < set(everything)
    timed = {(op, sizes.H) for op, sizes in everything if sizes.B == 20 or sizes.B == 256}
    assert {(op, 600) for op in every_op()} | {("rnn_scan", 64), ("combiner_scan", 1024)} <= timed
    parts = [job for part in range(5) for job in everything[part::5]]
    assert sorted(map(str, parts)) == sorted(map(str, everything))


def test_what_cannot_be_exercised_is_told_and_the_rest_goes_on(capsys, monkeypatch):
    monkeypatch.setattr(exercise, "every_op", lambda: ["emitter", "nonsense", "combiner"])
    monkeypatch.setattr(exercise, "backends_of", lambda op, device: ["some", "reference"])
    monkeypatch.setattr(exercise, "by", lambda name, op: reference_of(op))
    assert exercise.main(["--device", "cpu"]) == 1
    words = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line[0] in "eF"]
    assert words == ["exercised emitter", "FAILED nonsense", "exercised combiner"]


def test_a_rowwise_op_is_checked_and_then_timed(stage):
    rowwise.time_function(stage, "emitter", errors.QUICK, "reference", by("reference", "emitter"))
    wrong = by("reference", "emitter")
    rowwise.time_function(stage, "emitter", errors.QUICK, "wrong", lambda **given: 1.01 * wrong(**given))
    rows = read(stage.out / "rows.jsonl")
    timed = [(row["case"], row["impl"]) for row in of_kind(rows, "cases")]
    case = "emitter, B=3, T=5"
    assert timed == [(f"{case}, forward", "reference"), (f"{case}, forward and backward", "reference")]
    assert of_kind(rows, "not_run") == [{"case": case, "impl": "wrong", "why": "beyond its bound"}]
    assert not any(row["ok"] for row in of_kind(rows, "correctness"))


def test_what_has_to_be_compiled_is_timed_last(stage):
    names = [unit.name for unit in rowwise.units(stage)]
    assert not any("scan" in name for name in names)
    first = next(i for i, name in enumerate(names) if rowwise.COMPILED in name)
    assert len(names) - first == len(every_op()) - 2
    assert all(rowwise.COMPILED in name for name in names[first:])


def test_time_calls_by_the_clock():
    calls = []
    samples = measure.time_calls(lambda: calls.append(time.sleep(0.002)), "cpu", seconds=0.02)
    assert measure.LEAST_ROUNDS <= len(samples.ms) <= 10
    assert min(samples.ms) >= 2.0
    assert len(calls) > len(samples.ms)


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
    # Without it one draw is another: 15 numbers a step, not a multiple of 16.
    pyro.set_rng_seed(3)
    assert not torch.equal(torch.empty(4, 3, 5).normal_(), step_by_step)


# --- reports of other programs --------------------------------------------------------------------------

MEMCHECK = """========= COMPUTE-SANITIZER
exercised rnn_scan, triton
========= Invalid __global__ write of size 4 bytes
=========     at rnn_scan_fwd_kernel+0x1230
=========     by thread (0,0,0) in block (3,0,0)
=========     Access at 0x7f0000000200 is out of bounds
=========
========= Invalid __global__ write of size 4 bytes
=========     at rnn_scan_fwd_kernel+0x1230
=========     by thread (1,0,0) in block (3,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at dmm::cuda::rnn_scan_kernel(Args)+0x40 in scan.cuh:10
=========     and Read access at dmm::cuda::rnn_scan_kernel(Args)+0x90 in scan.cuh:12 [64 hazards]
=========
========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)
"""
CLEAN = "========= COMPUTE-SANITIZER\nexercised a, b\n========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


def test_reports_of_the_sanitizer_are_read():
    found = sanitizer.parse(MEMCHECK)
    assert (found["errors"], found["warnings"], found["exercised"]) == (2, 0, 1)
    assert found["reports"] == {"Invalid __global__ write of size 4 bytes": 2}
    assert found["kernels"] == {"rnn_scan_fwd_kernel": 2}
    races = sanitizer.parse(RACECHECK)
    assert (races["errors"], races["warnings"]) == (1, 2)
    assert races["kernels"] == {"dmm::cuda::rnn_scan_kernel": 2}
    (report,) = races["reports"]
    assert report.startswith("Error: Race reported between Write access")


@pytest.mark.parametrize(
    ("output", "errors"), [(CLEAN, 0), (CLEAN_RACES, 0), ("Device not supported\n", None)]
)
def test_no_summary_is_not_no_error(output, errors):
    assert sanitizer.parse(output)["errors"] == errors


@pytest.mark.parametrize(
    ("output", "status", "fine"), [(CLEAN, 0, True), (MEMCHECK, 0, False), (CLEAN, 1, False), ("", 0, False)]
)
def test_a_tool_is_fine_when_it_ends_well_and_finds_nothing(stage, tmp_path, output, status, fine):
    program = tmp_path / "sanitizer"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{output}\nEOF\nexit {status}\n")
    program.chmod(0o755)
    if fine:
        sanitizer.check(stage, str(program), "memcheck", 3)
    else:
        with pytest.raises(RuntimeError, match=r"memcheck: (\d+|None) errors"):
            sanitizer.check(stage, str(program), "memcheck", 3)
    (detail,) = of_kind(read(tmp_path / "rows.jsonl"), "detail")
    assert detail["memcheck"]["errors"] == sanitizer.parse(output)["errors"]
    assert output in (tmp_path / "sanitizer.log").read_text()


def test_the_sanitizer_is_looked_for_beside_nvcc(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    beside = tmp_path / "toolkit" / "bin" / "compute-sanitizer"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert sanitizer.find() == str(beside)
    on_path = tmp_path / "compute-sanitizer"
    on_path.touch()
    on_path.chmod(0o755)
    assert sanitizer.find() == str(on_path)


def test_without_a_sanitizer_it_is_said(stage, monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    (unit,) = sanitizer.units(stage)
    unit.run()
    (detail,) = of_kind(read(stage.out / "rows.jsonl"), "detail")
    assert "not found" in detail["sanitizer"]


def test_a_report_of_pytest_is_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="m" name="good" time="1.5"/>'
        '<testcase classname="m" name="bad"><failure message="off by one">..</failure></testcase>'
        '<testcase classname="m" name="both"><failure message="a"/><error message="b"/></testcase>'
        '<testcase classname="m" name="not"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    found = tests.read_report(path)
    assert (found["passed"], found["failed"], found["skipped"], found["seconds"]) == (1, 2, 1, 1.5)
    assert found["skipped_because"] == {"no GPU": 1}
    assert found["failures"][0] == {"test": "m::bad", "message": "off by one"}


def test_failing_tests_fail_the_stage_and_leave_their_report(stage, monkeypatch, tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", str(path)]
    monkeypatch.setattr(tests, "command", lambda stage, report: [*words, "--junitxml", str(report)])
    with pytest.raises(RuntimeError, match="'passed': 1, 'failed': 1"):
        tests.run_tests(stage)
    (detail,) = of_kind(read(tmp_path / "rows.jsonl"), "detail")
    assert detail["tests"]["failures"][0]["test"].endswith("::test_bad")


@pytest.mark.parametrize("in_the_background", [False, True])
def test_a_program_that_hangs_is_interrupted_and_its_words_are_kept(monkeypatch, request, in_the_background):
    before = signal.getsignal(signal.SIGINT)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    signal.signal(signal.SIGINT, signal.SIG_IGN if in_the_background else signal.default_int_handler)
    monkeypatch.setattr(commands, "LAST_WORDS", 5.0)
    program = (
        "import time\nprint('begun', flush=True)\ntry: time.sleep(99)\nexcept KeyboardInterrupt: print('bye')"
    )
    ended = commands.run([sys.executable, "-c", program], 2.0, echo=False)
    assert ended.status is None
    assert ended.output.split() == ["begun", "bye"]
    assert ended.describe().splitlines() == ["time was up", "begun", "bye"]


def test_the_build_says_what_a_fresh_process_finds(stage):
    found = build.info(stage)
    assert found["torch"] == torch.__version__
    assert ("cpu" in found["loaded_for"]) == ops.info()["backends"]["cpp"]
