"""The report is written from the newest results, and unfit results are refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.report import __main__ as report
from benchmarks.report import pages
from benchmarks.report.accuracy import errors_table
from benchmarks.report.markdown import NOT_RUN
from benchmarks.report.steps import implementations_table, scaling_table
from tests.helpers_results import (
    RATIO,
    a_gpu_run,
    a_run,
    a_scaling_run,
    a_stage,
    an_error,
    checks_of,
    with_errors,
)

EMPTY = f"# Title\n\n{pages.START}\nold text\n{pages.END}\n\nAfter.\n"


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text(EMPTY)
    return tmp_path


def put(place, name, results):
    (place / "benchmarks" / "results" / name).write_text(json.dumps(results))


def call(place, *more):
    paths = {"--readme": "README.md", "--page": "docs/results.md", "--results": "benchmarks/results"}
    options = [text for option, path in paths.items() for text in (option, str(place / path))]
    return report.main([*options, *more])


def readme(place):
    return (place / "README.md").read_text()


def overview(place):
    return (place / "docs" / "results.md").read_text()


def test_writes_table_and_plot_and_then_passes_its_check(place):
    put(place, "a.json", a_run())
    assert call(place, "--check") == 1
    assert call(place) == 0
    text = overview(place)
    assert text.startswith("# Title\n\n")
    assert text.endswith(f"{pages.END}\n\nAfter.\n")
    assert "old text" not in text
    row = "| a step | dmm_fast | 123.4 | 120.0 to 130.1 | 7 | 2.50 (2.00 to 3.00) |"
    assert row in text
    for fact in ("`abc1234`", "A Processor", "torch 2.13.0", "2 of 2 threads", "10% of its bound"):
        assert fact in text
    assert "](../benchmarks/results/cpu.png)" in text
    assert (place / "benchmarks" / "results" / "cpu.png").stat().st_size > 5000
    assert call(place, "--check") == 0


def test_peers_have_a_table_of_their_own(place):
    results = a_run()
    put(place, "a.json", results)
    assert call(place) == 0
    assert "without Pyro" not in overview(place)
    (ours,) = results["cases"]
    ours["extra"]["against_peers"] = {"one": RATIO, "another": {"median": 1.25, "low": 1.0, "high": 1.5}}
    other = {**ours, "case": "an epoch", "extra": {**ours["extra"], "against_peers": {"one": RATIO}}}
    peer = {**ours, "impl": "one", "extra": {"speed_up": ours["extra"]["speed_up"], "against_peers": {}}}
    results["cases"] += [other, peer]
    results["correctness"] = checks_of(results["cases"])
    put(place, "a.json", results)
    assert call(place) == 0
    text = overview(place)
    assert "| case | implementation | times faster than one | times faster than another |" in text
    assert "| a step | dmm_fast | 2.50 (2.00 to 3.00) | 1.25 (1.00 to 1.50) |" in text
    assert "| an epoch | dmm_fast | 2.50 (2.00 to 3.00) | not run |" in text
    assert "| a step | one | 2.50" not in text


def test_check_detects_an_edited_or_missing_page(place, capsys):
    put(place, "a.json", with_errors(an_error()))
    call(place)
    page = pages.tables_path(place / "benchmarks/results")
    assert "in this run; the bound is 3 times" in overview(place)
    page.write_text(page.read_text().replace("123.4", "12.3"))
    assert call(place, "--check") == 1
    assert "stale: benchmarks/results/README.md;" in capsys.readouterr().err
    page.unlink()
    assert call(place, "--check") == 1


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_check_detects_an_edited_number(place, capsys, name):
    put(place, "a.json", with_baseline(a_run()))
    call(place)
    page = place / name
    page.write_text(page.read_text().replace("123.4", "12.3"))
    assert call(place, "--check") == 1
    assert f"stale: {name};" in capsys.readouterr().err
    assert "12.3 " in page.read_text()  # a check writes nothing


def test_check_detects_a_plot_of_other_results(place, capsys):
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
    text = overview(place)
    assert "`newer`" in text
    assert "older" not in text
    assert text.index("## Suite `cpu`") < text.index("## Suite `gpu`")
    assert "A GPU, driver 1.2" in text


def test_peak_memory_has_a_column_where_it_was_measured():
    results = a_run()
    assert "peak" not in implementations_table(results["cases"])
    results["cases"][0]["extra"]["peak_resident_bytes"] = 43_600_000
    text = implementations_table(results["cases"])
    assert "| n | peak, MB |" in text
    assert "| 7 | 44 |" in text
    results["cases"].append({**results["cases"][0], "extra": {"speed_up": {"tutorial": RATIO}}})
    assert "| 7 | – |" in implementations_table(results["cases"])


def test_scaling_table_names_skipped_implementations_and_cases_checked_in_halves():
    text = scaling_table(a_scaling_run())
    ratio = "2.50 (2.00 to 3.00)"
    assert f"| middle | 90.0 ms, 13 MB | 80.0 ms, – MB | 10.0 ms, – MB | {ratio} | {ratio} |" in text
    assert f"| long | {NOT_RUN} | 850.0 ms, – MB | 50.0 ms, – MB | {NOT_RUN} | {ratio} |" in text
    assert "dmm_fast, times faster than tutorial mended" in text
    assert "Skipped: tutorial in long; it takes minutes." in text
    assert "in float32 against each other: wide." in text


def test_scaling_suite_has_its_own_table_and_plot(place):
    put(place, "a.json", a_scaling_run())
    assert call(place) == 0
    text = pages.tables_path(place / "benchmarks/results").read_text()
    picture = "![Milliseconds over B, T, suite cpu-scaling]"
    assert f"{picture}(cpu-scaling.png)" in text
    assert f"{picture}(../benchmarks/results/cpu-scaling.png)" in overview(place)
    assert "| wide | 900.0 ms" in text
    with Image.open(place / "benchmarks" / "results" / "cpu-scaling.png") as image:
        assert image.info["Source"] == "a.json"
        assert image.width > 1.5 * image.height  # two panels beside each other
    assert call(place, "--check") == 0


def test_errors_table_shows_the_largest_share_of_the_bound_for_each_op(place):
    rows = [
        an_error(),
        an_error("rnn_scan: value", "B=2, T=3, ragged", error=5e-7),
        an_error("rnn_scan: gradient of w_hh", error=9e-7, bound=3e-6, eager=1e-6),
        an_error("rnn_scan: gradient of h_0", error=6e-7, eager=1e-7),
        an_error("clipped_adam: value of params", error=0.0, eager=0.0),
    ]
    put(place, "a.json", with_errors(*rows))
    assert call(place) == 0
    text = pages.tables_path(place / "benchmarks/results").read_text()
    assert "| `rnn_scan` | cpp | value, ragged | 5.0e-07 | 2.50 | h_0, full | 6.0e-07 | 6.00 |" in text
    assert "| `clipped_adam` | cpp | value of params, full | 0.0e+00 | – | – | – | – |" in text
    assert "3 times the error of eager" in text
    assert "B=2, T=3, full and B=2, T=3, ragged, Z=4" in text


def test_files_without_errors_are_reported_as_not_measured(place):
    put(place, "a.json", a_run())
    assert call(place) == 0
    assert (
        "Errors of single ops against float64: not measured"
        in pages.tables_path(place / "benchmarks/results").read_text()
    )
    assert errors_table(with_errors()) == ""  # the suite measures no errors


def inexact(results):
    results.update(with_errors(an_error("rnn_scan: gradient of w_hh", error=2e-6)), meta=results["meta"])


def failed(results):
    results["correctness"].append(dict(results["correctness"][0], op="SVI gradients", ok=False))


def unchecked(results):
    results["correctness"].clear()


def quick(results):
    results["meta"]["quick"] = True


def another_implementation(results):
    (row,) = results["cases"]
    results["cases"].append({**row, "impl": "an unknown"})


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
        (another_implementation, "expected SVI loss of an unknown for a step, got none"),
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
    before = overview(place)
    bad = a_run(date="2026-02-01T00:00:00+00:00")
    spoil(bad)
    put(place, "b.json", bad)
    assert call(place, *option) == 1
    assert message in capsys.readouterr().err
    assert overview(place) == before


def test_refuses_a_file_without_metadata(place, capsys):
    bad = a_run()
    bad["meta"] = {}
    put(place, "a.json", bad)
    assert call(place) == 1
    assert "a.json: meta: expected date, commit and device, got {}" in capsys.readouterr().err


def test_a_loaded_machine_is_named(place):
    put(place, "a.json", a_run(load_warning="load average 3.00 before the start"))
    call(place)
    assert "**Caution: load average 3.00" in overview(place)


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
@pytest.mark.parametrize(
    "text",
    ["no markers", f"{pages.END}{pages.START}", f"{EMPTY}{EMPTY}"],
    ids=["none", "swapped", "twice"],
)
def test_refuses_a_page_without_its_markers(place, capsys, name, text):
    (place / name).write_text(text)
    assert call(place) == 1
    assert f"{Path(name).name}: expected one <!-- results:start -->" in capsys.readouterr().err
    assert (place / name).read_text() == text


def test_without_results_the_pages_say_so(place):
    assert call(place) == 0
    assert pages.NOTHING_YET in readme(place)
    assert pages.NOTHING_YET in overview(place)
    assert call(place, "--check") == 0


# --- the README ---------------------------------------------------------------------------------------


def with_baseline(results):
    (ours,) = results["cases"]
    extra = {"speed_up": {"tutorial": {"median": 1.0, "low": 1.0, "high": 1.0}}}
    results["cases"].insert(0, {**ours, "impl": "tutorial", "median_ms": 300.0, "extra": extra})
    results["correctness"] = checks_of(results["cases"])
    return results


def test_readme_has_the_tutorial_beside_ours_and_one_picture(place):
    put(place, "a.json", with_baseline(a_run()))
    assert call(place) == 0
    text = readme(place)
    assert "| on | case | implementation | median, ms | times faster than tutorial |" in text
    assert "| CPU | a step | tutorial | 300.0 | 1.00 (1.00 to 1.00) |" in text
    assert "| CPU | a step | dmm_fast | 123.4 | 2.50 (2.00 to 3.00) |" in text
    assert "CPU: A Processor, measured 2026-01-02 at commit `abc1234` with torch 2.13.0" in text
    assert text.count("](") == text.count("](benchmarks/results/cpu.png)") == 1


def test_readme_has_the_newest_gpu_run_and_names_its_failed_tests(place):
    put(place, "old.json", graphed(a_gpu_run(commit="older"), "gpu-first", "2026-01-01T00:00:00+00:00"))
    newer = graphed(a_gpu_run(commit="newer"), "gpu-second", "2026-02-01T00:00:00+00:00")
    put(place, "new.json", newer)
    assert call(place) == 0
    assert "`newer`" in readme(place)
    assert "`older`" not in readme(place)
    assert "Not ok" not in readme(place)
    newer["stages"].append(a_stage("tests", ok=False, error="exit status 1; last line: 4 failed"))
    put(place, "new.json", newer)
    assert call(place) == 0
    sentence = "**Not ok in this run: tests (exit status 1; last line: 4 failed).**"
    assert sentence in " ".join(readme(place).split())


def graphed(results, suite, date):
    results["suite"], results["meta"]["date"] = suite, date
    for row in results["cases"] + results["correctness"]:
        for key in ("impl", "backend"):
            if row.get(key) == "dmm_fast":
                row[key] = "dmm_fast, graphed"
    return results
