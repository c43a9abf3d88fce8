"""Report sections of a GPU run, and of training to a target NLL on either device."""

import json

import pytest
from PIL import Image

from benchmarks.report import __main__ as report
from benchmarks.report import gpu, pages, to_target
from benchmarks.report.gpu import headline, not_ok, not_run_sentence, not_run_table, stages_table
from benchmarks.report.markdown import cell, code, milliseconds, percent, ratio, three_digits
from benchmarks.report.parts import Picture
from benchmarks.report.profiles import profile_tables
from benchmarks.report.results import share_of_bound
from benchmarks.report.rowwise import roofline_table, rowwise_table
from benchmarks.report.scans import floors_table, scans_table, sweep_table
from benchmarks.report.steps import headline_table, implementations_table, peers_table
from benchmarks.report.to_target import quality_table
from tests.helpers_results import (
    SIZE,
    STEP,
    a_gpu_run,
    a_quality_run,
    a_scan,
    a_smoke_row,
    a_stage,
    stage_of,
)

PLOTS = {"gpu-svi_step.png", "gpu-scaling.png", "gpu-scans.png", "gpu-train_to_quality.png"}


def texts(parts):
    return "\n\n".join(part for part in parts if isinstance(part, str))


def names(parts):
    return [part.name for part in parts if isinstance(part, Picture)]


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for page in ("README.md", "results.md"):
        (tmp_path / page).write_text(f"{pages.START}{pages.END}")
    return tmp_path


def call(place, results, *more):
    (place / "results" / "a.json").write_text(json.dumps(results))
    paths = {"--readme": "README.md", "--page": "results.md", "--results": "results"}
    options = [text for option, path in paths.items() for text in (option, str(place / path))]
    return report.main([*options, *more])


# --- README and results page --------------------------------------------------------------------------


def test_overview_is_short_and_the_page_has_everything(place):
    assert call(place, a_gpu_run()) == 0
    overview, page = (place / "results.md").read_text(), (place / "results" / "README.md").read_text()
    for both in (overview, page):
        assert "A GPU, driver 1.2" in both
        assert "checks against the baseline and against float64 passed" in both
        assert "| training | dmm_fast | 6.87 | 5.00 | 2 | 24 |" in both
        assert "Not ok" not in both
    words = ("B=64", "kernel<", "exchange floor", "emitter, B=20", "GB/s", "### Stages")
    for word in (*words, "a_kernel", "### Steps of each guide", "### Training\n"):
        assert word not in overview
        assert word in page
    assert call(place, a_gpu_run(), "--check") == 0


def test_every_plot_names_its_source_and_is_checked(place, capsys):
    assert call(place, a_gpu_run()) == 0
    overview, page = (place / "results.md").read_text(), (place / "results" / "README.md").read_text()
    assert {path.name for path in (place / "results").glob("*.png")} == PLOTS
    for name in PLOTS:
        assert f"](results/{name})" in overview
        assert f"]({name})" in page
        path = place / "results" / name
        with Image.open(path) as image:
            assert image.info["Source"] == "a.json"
            assert image.width > 500
        path.unlink()
        assert call(place, a_gpu_run(), "--check") == 1
        assert name in capsys.readouterr().err


def test_sections_without_measurements_are_omitted(place):
    results = a_gpu_run()
    results["cases"] = [row for row in results["cases"] if row["suite"] == "roofline"]
    results["profiles"], results["smoke"] = [], []
    results["stages"] = [a_stage("roofline"), a_stage("smoke")]
    assert call(place, results) == 0
    page = (place / "results" / "README.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("### ")]
    assert headings == ["### Stages", "### Rowwise ops", "### Errors"]
    assert not list((place / "results").glob("*.png"))


@pytest.mark.parametrize("suite", ["svi_step", "epoch", "train_to_quality"])
def test_times_without_checks_are_refused(place, capsys, suite):
    results = a_gpu_run()
    row = next(row for row in results["cases"] if row["suite"] == suite)
    results["cases"].append({**row, "impl": "an unknown"})
    assert call(place, results) == 1
    assert f"expected SVI loss of an unknown for {row['case']}, got none" in capsys.readouterr().err


def test_only_a_zero_error_is_within_a_bound_of_zero():
    assert share_of_bound({"max_rel_error": 0.0, "bound": 0.0}) == 0.0
    assert share_of_bound({"max_rel_error": 1e-9, "bound": 0.0}) == float("inf")
    assert share_of_bound({"max_rel_error": 1e-9, "bound": 4e-9}) == 0.25


# --- stages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "kernels", "errors", "replays", "tests"])
def test_a_checking_stage_that_failed_is_named_first(name):
    results = a_gpu_run()
    stage_of(results, name).update(ok=False, error="pytest: 3 failed | 2 errors\nits last words")
    sentence = f"**Not ok in this run: {name} (pytest: 3 failed \\| 2 errors).**"
    assert gpu.overview_parts(results)[0] == sentence
    assert gpu.page_parts(results)[0] == sentence


def test_a_missing_smoke_test_is_named_and_other_missing_stages_are_not():
    results = a_gpu_run()
    results["stages"] = [stage for stage in results["stages"] if stage["name"] not in ("smoke", "tests")]
    stage_of(results, "svi_step").update(ok=False, error="no time")
    assert not_ok(results) == "**Not ok in this run: smoke (did not run).**"
    assert "| svi_step | **not ok**: no time |  | 2 |" in stages_table(results)


def test_stages_of_older_files_have_their_present_names():
    assert "| svi_step | ok |  | 2 |" in stages_table({"stages": [a_stage("race")]})


def test_failed_kernels_are_named_with_their_replacement():
    results = a_gpu_run()
    results["smoke"] = [a_smoke_row(ok=False, first_bad={"row": 1, "t": 2, "unit": 3})]
    results["cases"][0]["replaced"] = {"rnn_scan": "triton"}
    for parts in (gpu.overview_parts(results), gpu.page_parts(results)):
        assert any("`rnn_scan` by triton" in part for part in parts if isinstance(part, str))
    assert "rnn_scan forward: first bad: row 1, t 2, unit 3" in texts(gpu.page_parts(results))


def test_stage_details_show_their_counts():
    results = a_gpu_run()
    lines = ["SKIPPED [3] tests/m.py: no GPU", "==== 812 passed, 3 skipped in 9.87s ===="]
    stage_of(results, "tests")["detail"] = {"tests": lines}
    stage_of(results, "machine")["detail"] = {"clusters_at_once": {"8": 15, "16": 7}}
    text = stages_table(results)
    assert "| tests | ok | 812 passed, 3 skipped in 9.87s | 2 |" in text
    assert "| machine | ok | concurrent clusters: 15 of 8, 7 of 16 blocks | 2 |" in text


def test_skipped_implementations_are_listed_with_the_last_line_of_their_reason():
    results = a_gpu_run()
    results["not_run"] = [
        {"case": STEP, "impl": "JAX", "why": "Traceback\n  somewhere\nRuntimeError: no client"},
        {"case": "elsewhere", "impl": "all", "why": "the time was spent"},
        {"case": "all", "impl": "a peer", "why": "failed at its first steps"},
    ]
    assert "| elsewhere | all | the time was spent |" in not_run_table(results)
    assert f"| {STEP} | JAX | RuntimeError: no client |" in not_run_table(results)
    sentence = not_run_sentence(results, headline(results))
    first = f"Skipped: JAX in {STEP}; RuntimeError: no client."
    assert sentence == f"{first} Skipped: a peer in all; failed at its first steps."


# --- SVI steps ----------------------------------------------------------------------------------------


def test_headline_has_a_row_for_each_implementation_at_the_tutorials_size():
    text = headline_table(headline(a_gpu_run()))
    titles = text.splitlines()[0]
    assert titles.count("times faster than tutorial") == 3
    for case in (f"{STEP}: ms", f"{STEP}, tf32: ms", "an epoch, B=20: ms"):
        assert f"| {case} |" in titles
    steps = "2.00 | 256.0 (250.0 to 260.0) | 1.00 | 512.0 (500.0 to 520.0)"
    assert f"| dmm_fast | {steps} | 20.0 | 25.60 (25.00 to 26.00) |" in text
    assert "| dmm_fast, by itself | 1.50 | – | not run | not run | not run | not run |" in text
    assert "–: not timed interleaved with that baseline." in text
    assert text.endswith("Products of float32 are IEEE unless the case says otherwise.")


def test_all_cases_have_their_baselines_and_their_peaks():
    rows = [row for row in a_gpu_run()["cases"] if row["suite"] in ("svi_step", "epoch")]
    text = implementations_table(rows)
    assert "| n | peak, MB | times faster than tutorial | times faster than tutorial mended |" in text
    assert f"| {STEP} | dmm_fast | 2.00 | 1.80 to 2.20 | 9 | 44 | 256.0 (250.0 to 260.0) | – |" in text
    assert "| SVI step, B=64, T=129 | dmm_fast | 6.00 | 5.40 to 6.60 | 9 | – | – | 85.33 (" in text
    assert f"| {STEP} | dmm_fast | 2.50 (2.00 to 3.00) |" in peers_table(rows)
    assert "Too large for a float64 check" in texts(gpu.page_parts(a_gpu_run()))


def test_a_scaling_plot_needs_an_axis_of_two_sizes():
    results = a_gpu_run()
    (picture,) = [part for part in gpu.page_parts(results) if names([part]) == ["gpu-scaling.png"]]
    assert picture.shows == "Milliseconds over B, T, suite gpu, ieee"
    panels = picture.draw().axes
    assert [axes.get_xlabel() for axes in panels] == ["B", "T"]
    assert [axes.get_title() for axes in panels] == ["T=129", "B=20"]
    results["cases"] = [row for row in results["cases"] if len(row["extra"].get("along", {})) != 1]
    assert "gpu-scaling.png" not in names(gpu.page_parts(results))


def test_bars_that_are_far_apart_have_a_logarithmic_scale():
    picture = gpu.speed_up_picture(a_gpu_run())
    panels = picture.draw().axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        STEP,
        f"{STEP}, tf32",
        "an epoch, B=20",
    ]
    assert {axes.get_xscale() for axes in panels} == {"log"}
    # An implementation that was not timed interleaved with the tutorial has no bar.
    assert [len(axes.patches) for axes in panels] == [3, 2, 2]


# --- scans and ops ------------------------------------------------------------------------------------


def test_scans_are_compared_with_their_floor():
    text = scans_table(a_gpu_run())
    assert f"| `rnn_scan` | {SIZE} | *exchange floor* | 0.500 | – | 0.750 | – | 1.25 | – |" in text
    assert f"| `rnn_scan` | {SIZE} | cuda | 1.25 | 2.50 | 1.50 | 2.00 | 3.00 | 2.40 |" in text
    assert f"| `rnn_scan` | {SIZE} | cuda, graph | 1.00 | 2.00 | – | – | – | – |" in text
    assert f"| `rnn_scan` | {SIZE} | nn.RNN, float32 | 9.88 | 19.75 | – | – | – | – |" in text
    assert "B=64, H=600, Z=100, T=129 | reference | 43.9 | – |" in text
    assert text.count("*exchange floor*") == 1
    assert (
        text.count("\n| ") == text.count("\n| `rnn_scan` | ") == 5
    )  # plan sweeps and floors without a plan have other tables


def test_scans_without_a_floor_have_no_column_for_it():
    results = a_gpu_run()
    results["cases"] = [a_scan("rnn_scan", "cuda", "forward", 1.25)]
    assert f"| `rnn_scan` | {SIZE} | cuda | 1.25 | – | – |" in scans_table(results)
    assert "floor" not in scans_table(results)
    assert floors_table(results) == sweep_table(results) == ""


def test_floors_and_plan_sweeps_have_separate_tables():
    results = a_gpu_run()
    assert f"| exchange floor of rnn_scan, {SIZE} | 256 threads | 7 | 3 | 114 | 0.500 |" in floors_table(
        results
    )
    assert f"| rnn_scan, {SIZE} | 3 rows | 1160 | 1.26 |" in sweep_table(results)


def test_the_plot_of_the_scans_shows_the_first_size_and_the_floor_of_each_pass():
    (picture,) = [part for part in gpu.page_parts(a_gpu_run()) if names([part]) == ["gpu-scans.png"]]
    assert picture.shows.endswith(SIZE)
    panels = picture.draw().axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "rnn_scan, forward",
        "rnn_scan, backward",
        "rnn_scan, forward and backward",
    ]
    floors = [line.get_xdata()[0] for axes in panels for line in axes.lines if line.get_linestyle() == "--"]
    assert floors == [0.5, 0.75, 1.25]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "dmm_fast, CUDA",
        "nn.RNN, float32",
    ]


def test_rowwise_ops_are_compared_with_their_floor():
    text = rowwise_table(a_gpu_run())
    assert "| call | floor, us | triton, us | reference, us |" in text
    assert "| emitter, B=20, T=129, forward | 2.00 | 4.00 (50%) | 50.0 (4.0%) |" in text
    # Bound by its 1e9 operations, not by its bytes.
    assert "| emitter, B=256, T=129, forward | 20.0 | 40.0 (50%) | not run |" in text
    results = a_gpu_run()
    results["cases"] = [row for row in results["cases"] if row["suite"] != "roofline"]
    assert "| emitter, B=20, T=129, forward | – | 4.00 (–) | 50.0 (–) |" in rowwise_table(results)


def test_roofline_rates_have_units():
    text = roofline_table(a_gpu_run())
    assert "| copy | 8 bytes | 2900 GB/s |" in text
    assert "| tf32 matrix product | 8 cubed | 390 TFLOP/s |" in text


def test_a_profile_lists_its_largest_kernels_and_the_rest_in_one_row():
    (text,) = profile_tables(a_gpu_run())
    assert f"dmm_fast, {STEP}: a step takes 20000 us, and the GPU is busy for 15300 of them (76%)." in text
    lines = text.splitlines()
    assert lines[4] == "| `kernel<17 \\| x>` | 17 | 1700 | 11% |"
    assert lines[-1] == "| 2 others | 3 | 300 | 2.0% |"
    assert len(lines) == 4 + 15 + 1


def test_a_profile_of_an_idle_gpu_has_no_shares():
    results = a_gpu_run()
    results["profiles"][0] |= {"kernels": [{"name": "f", "count": 1, "us": 0.0}], "busy_us": 0.0}
    (text,) = profile_tables(results)
    assert "busy for 0.00 of them (0.0%)." in text
    assert text.endswith("| `f` | 1 | 0.00 | – |")


# --- training -----------------------------------------------------------------------------------------


def test_training_table_shows_when_the_target_was_reached():
    for results in (a_gpu_run(), a_quality_run()):
        text = quality_table(results)
        assert (
            "| training | tutorial | 6.87 | not reached | – | – | 8.125 | 8.125 | 8.375 | 7.50 | 3 | 512.0 |"
            in text
        )
        assert (
            "| training | dmm_fast | 6.87 | 5.00 | 2 | 24 | 6.763 | 6.750 | 7.013 | 10.0 | 4 | 2.00 |" in text
        )


def test_training_without_an_evaluation_has_dashes():
    results = a_quality_run()
    for row in results["cases"]:
        row["extra"] |= {"curve": [], "best_test": None, "last_test": None, "last_test_elbo": None}
    assert (
        "| training | dmm_fast | 6.87 | not reached | – | – | – | – | – | 10.0 | 4 | 2.00 |"
        in quality_table(results)
    )
    assert to_target.quality_picture(results, "any.png").draw().axes


def test_the_plot_of_training_has_a_line_for_each_implementation_and_the_target():
    picture = to_target.quality_picture(a_quality_run(), "any.png")
    (axes,) = picture.draw().axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["tutorial"].get_ydata()) == [61.0, 9.5, 8.125]
    assert list(lines["target 6.87"].get_ydata()) == [6.87, 6.87]
    assert lines["target 6.87"].get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["5.00 s"]


def test_the_plot_of_training_reaches_the_lowest_nll_of_every_implementation():
    results = a_quality_run()
    (axes,) = to_target.quality_picture(results, "any.png").draw().axes
    assert axes.get_ylim()[1] == pytest.approx(1.4 * 6.87)
    results["cases"][0]["extra"]["curve"][1:] = []
    (axes,) = to_target.quality_picture(results, "any.png").draw().axes
    assert axes.get_ylim()[1] == pytest.approx(1.1 * 61.0)
    assert axes.get_xlim()[0] < 2.5


def test_training_on_a_cpu_is_a_suite_of_its_own(place):
    assert call(place, a_quality_run()) == 0
    overview, page = (place / "results.md").read_text(), (place / "results" / "README.md").read_text()
    for both in (overview, page):
        assert "Suite `cpu-quality`" in both
        assert "| training | dmm_fast | 6.87 | 5.00 |" in both
    with Image.open(place / "results" / "cpu-quality.png") as image:
        assert image.info["Source"] == "a.json"
    assert call(place, a_quality_run(), "--check") == 0


# --- Markdown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "as_ms", "as_digits", "as_ratio"),
    [
        (1234.56, "1234.6", "1235", "1235"),
        (332.25, "332.2", "332", "332.2"),
        (99.996, "100.0", "100", "100.0"),
        (10.04, "10.0", "10.0", "10.04"),
        (9.996, "10.0", "10.0", "10.00"),
        (1.2345, "1.23", "1.23", "1.23"),
        (0.09996, "0.100", "0.100", "0.10"),
        (0.0, "0.00", "0.00", "0.00"),
    ],
)
def test_numbers_have_their_significant_digits(number, as_ms, as_digits, as_ratio):
    assert (milliseconds(number), three_digits(number), ratio(number)) == (as_ms, as_digits, as_ratio)


def test_percentages_below_ten_have_one_decimal():
    assert [percent(share) for share in (0.5, 0.0996, 0.0994, 0.004, None)] == [
        "50%",
        "10%",
        "9.9%",
        "0.4%",
        "–",
    ]


def test_cells_are_escaped_and_shortened():
    assert cell("a | b\n  c") == "a \\| b c"
    assert code("a `b` |") == "`a b \\|`"
    assert cell("x" * 20, 10) == "xxxxxxxx …"
