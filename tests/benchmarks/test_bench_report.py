"""The README says what the newest results say, or nothing."""

import json

import pytest
from PIL import Image

from benchmarks.report import __main__ as report
from benchmarks.report.accuracy import errors_table
from benchmarks.report.markdown import NOT_RUN
from benchmarks.report.steps import contestants_table, scaling_table
from tests.helpers_results import RATIO, a_gpu_run, a_run, a_scaling_run, an_error, checks_of, with_errors

EMPTY = f"# Title\n\n{report.START}\nold text\n{report.END}\n\nAfter.\n"


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text(EMPTY)
    return tmp_path


def put(place, name, results):
    (place / "benchmarks" / "results" / name).write_text(json.dumps(results))


def call(place, *more):
    readme, folder = place / "README.md", place / "benchmarks" / "results"
    return report.main(["--readme", str(readme), "--results", str(folder), *more])


def test_writes_table_and_plot_and_then_checks_green(place):
    put(place, "a.json", a_run())
    assert call(place, "--check") == 1
    assert call(place) == 0
    text = (place / "README.md").read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith(f"{report.END}\n\nAfter.\n")
    assert "old text" not in text
    row = "| a step | dmm_fast | 123.4 | 120.0 to 130.1 | 7 | 2.50 (2.00 to 3.00) |"
    assert row in text
    for fact in ("`abc1234`", "A Processor", "torch 2.13.0", "2 of 2 threads", "10% of its bound"):
        assert fact in text
    assert "](benchmarks/results/cpu.png)" in text
    assert (place / "benchmarks" / "results" / "cpu.png").stat().st_size > 5000
    assert call(place, "--check") == 0


def test_a_second_table_has_the_peers(place):
    results = a_run()
    put(place, "a.json", results)
    assert call(place) == 0
    assert "without Pyro" not in (place / "README.md").read_text()
    (ours,) = results["cases"]
    ours["extra"]["against_peers"] = {"one": RATIO, "another": {"median": 1.25, "low": 1.0, "high": 1.5}}
    other = {**ours, "case": "an epoch", "extra": {**ours["extra"], "against_peers": {"one": RATIO}}}
    peer = {**ours, "impl": "one", "extra": {"speed_up": ours["extra"]["speed_up"], "against_peers": {}}}
    results["cases"] += [other, peer]
    results["correctness"] = checks_of(results["cases"])
    put(place, "a.json", results)
    assert call(place) == 0
    text = (place / "README.md").read_text()
    assert "| case | implementation | times faster than one | times faster than another |" in text
    assert "| a step | dmm_fast | 2.50 (2.00 to 3.00) | 1.25 (1.00 to 1.50) |" in text
    assert "| an epoch | dmm_fast | 2.50 (2.00 to 3.00) | not run |" in text
    assert "| a step | one | 2.50" not in text


def test_check_sees_a_page_of_tables_that_is_not_the_results(place, capsys):
    put(place, "a.json", with_errors(an_error()))
    call(place)
    page = report.page_path(place / "benchmarks/results")
    assert "in the same run; the bound is 3 times" in (place / "README.md").read_text()
    page.write_text(page.read_text().replace("123.4", "12.3"))
    assert call(place, "--check") == 1
    assert "stale: results/README.md;" in capsys.readouterr().err
    page.unlink()
    assert call(place, "--check") == 1


def test_check_sees_a_number_typed_by_hand(place, capsys):
    put(place, "a.json", a_run())
    call(place)
    readme = place / "README.md"
    readme.write_text(readme.read_text().replace("123.4", "12.3"))
    assert call(place, "--check") == 1
    assert "README.md" in capsys.readouterr().err
    assert "12.3 " in readme.read_text()  # a check writes nothing


def test_check_sees_a_plot_of_other_results(place, capsys):
    put(place, "a.json", a_run())
    call(place)
    (place / "benchmarks" / "results" / "a.json").rename(place / "benchmarks" / "results" / "b.json")
    assert call(place, "--check") == 1
    assert "cpu.png" in capsys.readouterr().err


def test_the_newest_run_of_each_suite_counts(place):
    put(place, "z.json", a_run(date="2026-01-01T00:00:00+00:00", commit="older"))
    put(place, "a.json", a_run(date="2026-03-01T00:00:00+00:00", commit="newer"))
    put(place, "gpu.json", a_gpu_run(commit="other"))
    assert call(place) == 0
    text = (place / "README.md").read_text()
    assert "`newer`" in text
    assert "older" not in text
    assert text.index("### Suite `cpu`") < text.index("### Suite `gpu`")
    assert "A GPU, driver 1.2" in text


def test_peak_memory_has_a_column_where_it_was_measured():
    results = a_run()
    assert "peak" not in contestants_table(results["cases"])
    results["cases"][0]["extra"]["peak_resident_bytes"] = 43_600_000
    text = contestants_table(results["cases"])
    assert "| n | peak, MB |" in text
    assert "| 7 | 44 |" in text
    results["cases"].append({**results["cases"][0], "extra": {"speed_up": {"tutorial": RATIO}}})
    assert "| 7 | – |" in contestants_table(results["cases"])


def test_scaling_table_says_what_did_not_run_and_what_was_checked_in_halves():
    text = scaling_table(a_scaling_run())
    ratio = "2.50 (2.00 to 3.00)"
    assert f"| middle | 90.0 ms, 13 MB | 80.0 ms, – MB | 10.0 ms, – MB | {ratio} | {ratio} |" in text
    assert f"| long | {NOT_RUN} | 850.0 ms, – MB | 50.0 ms, – MB | {NOT_RUN} | {ratio} |" in text
    assert "dmm_fast, times faster than tutorial mended" in text
    assert "Not run: tutorial in long; it takes minutes." in text
    assert "in float32 against each other: wide." in text


def test_scaling_suite_has_its_own_table_and_plot(place):
    put(place, "a.json", a_scaling_run())
    assert call(place) == 0
    text = report.page_path(place / "benchmarks/results").read_text()
    picture = "![Milliseconds over B, T, suite cpu-scaling]"
    assert f"{picture}(cpu-scaling.png)" in text
    assert f"{picture}(benchmarks/results/cpu-scaling.png)" in (place / "README.md").read_text()
    assert "| wide | 900.0 ms" in text
    with Image.open(place / "benchmarks" / "results" / "cpu-scaling.png") as image:
        assert image.info["Source"] == "a.json"
        assert image.width > 1.5 * image.height  # two panels beside each other
    assert call(place, "--check") == 0


def test_errors_table_shows_the_nearest_to_its_bound_of_each_op(place):
    rows = [
        an_error(),
        an_error("rnn_scan: value", "B=2, T=3, ragged", error=5e-7),
        an_error("rnn_scan: gradient of w_hh", error=9e-7, bound=3e-6, eager=1e-6),
        an_error("rnn_scan: gradient of h_0", error=6e-7, eager=1e-7),
        an_error("clipped_adam: value of params", error=0.0, eager=0.0),
    ]
    put(place, "a.json", with_errors(*rows))
    assert call(place) == 0
    text = report.page_path(place / "benchmarks/results").read_text()
    assert "| `rnn_scan` | cpp | value, ragged | 5.0e-07 | 2.50 | h_0, full | 6.0e-07 | 6.00 |" in text
    assert "| `clipped_adam` | cpp | value of params, full | 0.0e+00 | – | – | – | – |" in text
    assert "3 times the error of eager" in text
    assert "B=2, T=3, full and B=2, T=3, ragged, Z=4" in text


def test_errors_of_an_older_file_are_said_not_to_be_measured(place):
    put(place, "a.json", a_run())
    assert call(place) == 0
    assert (
        "Errors of single ops against float64: not measured"
        in report.page_path(place / "benchmarks/results").read_text()
    )
    assert errors_table(with_errors()) == ""  # a suite that asks for none says nothing


def inexact(results):
    results.update(with_errors(an_error("rnn_scan: gradient of w_hh", error=2e-6)), meta=results["meta"])


def failed(results):
    results["correctness"].append(dict(results["correctness"][0], op="SVI gradients", ok=False))


def unchecked(results):
    results["correctness"].clear()


def quick(results):
    results["meta"]["quick"] = True


def another_contestant(results):
    (row,) = results["cases"]
    results["cases"].append({**row, "impl": "a stranger"})


def another_case(results):
    (row,) = results["cases"]
    results["cases"].append({**row, "case": "a step, tf32"})


def checked_on_another_case(results):
    for row in results["correctness"]:
        row["case"] = row["case"].replace("a step", "a step, tf32")


def without_gradients(results):
    results["correctness"].pop()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (failed, "SVI gradients of dmm_fast"),
        (another_contestant, "expected SVI loss of a stranger for a step, got none"),
        (another_case, "expected SVI loss of dmm_fast for a step, tf32, got none"),
        (checked_on_another_case, "expected SVI loss of dmm_fast for a step, got none"),
        (without_gradients, "expected SVI gradients of dmm_fast for a step, got none"),
        (inexact, "rnn_scan: gradient of w_hh of cpp"),
        (unchecked, "got none"),
        (quick, "a quick one"),
    ],
)
@pytest.mark.parametrize("option", [[], ["--check"]], ids=["write", "check"])
def test_refuses_unfit_results_even_with_older_good_ones(place, capsys, spoil, message, option):
    put(place, "a.json", a_run(date="2026-01-01T00:00:00+00:00"))
    call(place)
    before = (place / "README.md").read_text()
    bad = a_run(date="2026-02-01T00:00:00+00:00")
    spoil(bad)
    put(place, "b.json", bad)
    assert call(place, *option) == 1
    assert message in capsys.readouterr().err
    assert (place / "README.md").read_text() == before


def test_refuses_a_file_that_does_not_say_where_it_was_measured(place, capsys):
    bad = a_run()
    bad["meta"] = {}
    put(place, "a.json", bad)
    assert call(place) == 1
    assert "a.json: meta: expected date, commit and device, got {}" in capsys.readouterr().err


def test_a_loaded_machine_is_named(place):
    put(place, "a.json", a_run(load_warning="load average 3.00 before the start"))
    call(place)
    assert "**Beware: load average 3.00" in (place / "README.md").read_text()


@pytest.mark.parametrize(
    "text",
    ["no markers", f"{report.END}{report.START}", f"{EMPTY}{EMPTY}"],
    ids=["none", "swapped", "twice"],
)
def test_refuses_a_readme_without_its_markers(place, capsys, text):
    (place / "README.md").write_text(text)
    assert call(place) == 1
    assert "expected one <!-- results:start -->" in capsys.readouterr().err
    assert (place / "README.md").read_text() == text


def test_says_so_when_nothing_has_been_measured(place):
    assert call(place) == 0
    assert report.NOTHING_YET in (place / "README.md").read_text()
    assert call(place, "--check") == 0
