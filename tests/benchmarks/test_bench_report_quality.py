"""Trained models in the report: the table beside the literature's figures, and the learning curves."""

import json

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report import pages
from benchmarks.report.highlights import highlights
from benchmarks.report.literature import FIGURES, SETS, model_of, place_of, published
from benchmarks.report.quality import curves_plot, overview_parts, page_parts, quality_results, sentence
from benchmarks.report.results import ReportError

MODELS = {
    "krishnan": {"emission": "bernoulli", "augment": None},
    "aug": {"emission": "bernoulli", "augment": "both"},
    "aug-nade": {"emission": "nade", "augment": "both"},
}


META = {"date": "2026-01-02", "commit": "abc1234", "device": "A Processor", "driver": None}


def figure(total, mean):
    return {"total_over_total": total, "mean_of_averages": mean}


def a_run(data="JSB_Chorales", preset="krishnan", seed=0, bound=7.0, nll=6.5, **changes):
    """The results of a run, as benchmarks.quality writes them."""
    run = {
        "suite": "quality",
        "name": f"{data.lower()}-{preset}-{seed}-0123abcd",
        "data": data,
        "fingerprint": f"{data}, 229 sequences, CRC-32 0123abcd",
        "preset": preset,
        "seed": seed,
        "overrides": {},
        "settings": {**MODELS[preset], "seed": seed, "num_epochs": 400},
        "parameters": 1234,
        "meta": {
            "date": "2026-01-02",
            "commit": "abc1234",
            "device": "A Processor",
            "driver": None,
            "threads": 1,
        },
        "machines": [{"device": "A Processor", "threads": 1}],
        "ended": "patience",
        "limits": [400, 10],
        "seconds": 5400.0,
        "epochs": 300,
        "updates": 3600,
        "best": {"epochs": 250, "updates": 3000, "seconds": 4500.0, "valid": bound + 0.1},
        "bound": {"draws": 10, "test": figure(bound + 1, bound), "valid": figure(bound + 2, bound + 0.1)},
        "nll": {"draws": 500, "test": figure(nll + 1, nll)},
        "curve": [
            {"epoch": 50 * n, "seconds": 900.0 * n, "train": 9.0, "valid": 8.0, "test": bound + 6 / n}
            for n in range(1, 7)
        ],
    }
    return run | changes


@pytest.fixture
def place(tmp_path):
    (tmp_path / "results" / "quality").mkdir(parents=True)
    for page in ("README.md", "page.md"):
        (tmp_path / page).write_text(f"# Title\n\n{pages.START}\n{pages.END}\n")
    return tmp_path


def put(place, *runs):
    for run in runs:
        (place / "results" / "quality" / f"{run['name']}.json").write_text(json.dumps(run))


def call(place, *more):
    paths = {"--readme": "README.md", "--page": "page.md", "--results": "results"}
    return report.main(
        [word for option, path in paths.items() for word in (option, str(place / path))] + [*more]
    )


def results_of(place, *runs):
    put(place, *runs)
    return quality_results(place / "results" / "quality")["quality"][1]


def lines(results):
    rows = [line for line in overview_parts(results)[0].splitlines()[2:] if line]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_a_run_stands_beside_the_published_figures(place):
    found = lines(results_of(place, a_run()))
    assert found == [
        [
            *("JSB_Chorales", "`krishnan`", "DMM", "patience", "A Processor, 1 thread", "0"),
            *("7.000", "6.500", "6.926", "6.388", "8.000", "7.500", "300", "1.50"),
        ],
        ["JSB_Chorales", "–", "RNN-NADE, exact", *["–"] * 6, "5.19", *["–"] * 4],
    ]


def test_seeds_have_their_mean_and_range_and_other_settings_a_row(place):
    runs = [a_run(seed=seed, bound=bound, nll=bound - 1) for seed, bound in enumerate((7.0, 7.5, 9.5))]
    runs[1] |= {"nll": {"draws": 500, "test": None}, "ended": "time budget"}
    other = a_run(seed=3, name="other", overrides={"rnn_dim": 5})
    other["settings"]["rnn_dim"] = 5
    other, first, _ = lines(results_of(place, *runs, other))
    assert first[3:8] == [
        *("patience; time budget", "A Processor, 1 thread", "0, 1, 2"),
        *("8.000 (7.000 to 9.500)", "7.250 (6.000 to 8.500)"),
    ]
    assert other[1] == "`krishnan, rnn_dim=5`"
    assert other[5:7] == ["3", "7.000"]


def test_sets_and_models_have_the_order_of_the_literature(place):
    runs = [
        a_run("my songs", "aug"),
        a_run("muse_data", "aug-nade"),
        a_run("Piano_midi", "aug"),
        a_run("Piano_midi", "krishnan"),
    ]
    found = [(row[0], row[2], row[8], row[9]) for row in lines(results_of(place, *runs))]
    assert found == [
        ("Piano_midi", "DMM", "7.980", "7.835"),
        ("Piano_midi", "DMM-Aug", "7.721", "7.591"),
        ("Piano_midi", "RNN-NADE, exact", "–", "7.05"),
        ("muse_data", "DMM-Aug-NADE", "6.115", "6.049"),
        ("muse_data", "RNN-NADE, exact", "–", "5.60"),
        ("my songs", "DMM-Aug", "–", "–"),
    ]


def test_names_of_sets_are_compared_without_case_and_punctuation():
    names = ("JSB_Chorales", "nottingham", "Piano-midi.de", "MUSE_DATA")
    assert [place_of(name) for name in names] == list(range(len(SETS)))
    assert place_of("songs") is published("songs", "DMM") is published("JSB", None) is None
    assert model_of({"emission": "nade", "augment": None}) is None
    assert all(len(figures) == len(SETS) for figures in FIGURES.values())


def test_a_run_without_figures_has_dashes(place):
    empty = {"draws": 10, "test": None, "valid": None}
    run = a_run("songs", bound=7.0, nll=6.5, curve=[]) | {"bound": empty, "nll": {**empty, "draws": 500}}
    results = results_of(place, run)
    assert lines(results)[0][6:12] == ["–"] * 6
    assert overview_parts(results)[2] == ""  # no picture
    assert page_parts(results)[-1].endswith("| 250 | 1.25 | – | – | – |")


def test_the_curves_are_drawn_over_hours_with_the_published_bound(place):
    runs = [a_run(seed=0), a_run(seed=1, bound=8.0), a_run("songs")]
    first, second = curves_plot(runs, runs[0]["meta"]).axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["JSB_Chorales", "songs"]
    ours = [line for line in first.lines if line.get_label() == "krishnan"]
    assert [list(line.get_xdata()) for line in ours] == [[0.25, 0.5, 0.75, 1.0, 1.25, 1.5]] * 2
    assert list(ours[0].get_ydata()) == [p["test"] for p in runs[0]["curve"]]
    # The published bounds are of the other average.
    assert len(first.lines) == 2
    assert "over all steps" in first.get_ylabel()
    other = a_run(name="other", overrides={"rnn_dim": 5, "eval_frequency": 3})
    (axes,) = curves_plot([runs[0], other], runs[0]["meta"]).axes
    assert [line.get_label() for line in axes.lines] == ["krishnan", "krishnan, rnn_dim=5"]
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    for run in runs:
        run["curve"] = [{**point, "test_mean": point["test"] - 1} for point in run["curve"]]
    first, second = curves_plot(runs, runs[0]["meta"]).axes
    assert first.lines[0].get_ydata()[0] == runs[0]["curve"][0]["test"] - 1
    assert "mean of averages" in first.get_ylabel()
    published_lines = {line.get_ydata()[0] for line in first.lines if line.get_label() == "DMM, published"}
    assert published_lines == {6.926}
    assert "DMM, published" not in [line.get_label() for line in second.lines]
    negative = a_run("songs", curve=[{"epoch": 1, "seconds": 9.0, "test": -5.0}])
    (axes,) = curves_plot([negative], negative["meta"]).axes
    bottom, top = axes.get_ylim()
    assert bottom < -5.0 < top


def test_the_readme_names_the_best_finished_preset_of_each_set(place):
    results = results_of(
        place,
        a_run(bound=7.2, nll=6.6),
        a_run(preset="aug", seed=0, bound=6.0, nll=5.5),
        a_run(preset="aug", seed=1, bound=6.2, nll=5.7),
        a_run(preset="aug-nade", bound=5.0, nll=4.5, ended="time budget"),
        a_run("songs", bound=3.0, nll=2.0),
        a_run("unfinished", ended="time budget"),
    )
    told = sentence(results)
    assert told.endswith(
        ": JSB_Chorales 5.600 (6.100) with `aug`, published 6.288 (6.773); "
        "songs 2.000 (3.000) with `krishnan`."
    )
    assert " ".join(highlights({"quality": results})[0].split()) == told
    assert sentence({"runs": [a_run(ended="time budget")]}) == ""


def test_the_pages_hold_the_runs_and_are_checked(place, capsys):
    put(place, a_run())
    assert call(place, "--check") == 1
    assert call(place) == 0
    assert call(place, "--check") == 0
    assert "## Suite `quality`" in (place / "page.md").read_text()
    assert "](results/quality.png)" in (place / "page.md").read_text()
    assert "From the files in `quality/`." in (place / "results" / "README.md").read_text()
    assert "with `krishnan`, published 6.388 (6.926)." in " ".join((place / "README.md").read_text().split())
    put(place, a_run(seed=1))
    capsys.readouterr()
    assert call(place, "--check") == 1
    assert "quality.png" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"suite": "cpu"}', '{"suite": "quality"}'])
def test_another_file_among_the_runs_is_refused(place, text, capsys):
    (place / "results" / "quality" / "bad.json").write_text(text)
    with pytest.raises(ReportError, match=r"bad.json: expected the results of a run of benchmarks.quality"):
        quality_results(place / "results" / "quality")
    assert call(place) == 1
    assert "bad.json" in capsys.readouterr().err


def test_ablations_are_tables_of_changes(place):
    (place / "results" / "quality" / "ablations").mkdir()
    common = {"num_steps": 600, "eval_frequency": 10}
    for number, (overrides, bound) in enumerate(
        [({**common, "rnn": "lstm"}, 6.5), ({**common, "rnn": "lstm"}, 6.7), (common, 7.0)]
    ):
        run = a_run(seed=number, bound=bound, name=f"run-{number}", overrides=overrides)
        path = place / "results" / "quality" / "ablations" / f"{number}.json"
        path.write_text(json.dumps(run))
    assert call(place) == 0
    page = (place / "page.md").read_text()
    assert "JSB_Chorales, preset `krishnan` with `num_steps=600`, and one change a row:" in page
    rows = page.splitlines()
    assert "| – | patience | 2 | 300 | 1.50 | 7.100 | 7.000 | 6.500 |" in rows
    lstm = (
        "| `rnn=lstm` | patience | 0, 1 | 300 (300 to 300) | 1.50 (1.50 to 1.50) | 6.700 (6.600 to 6.800) |"
    )
    (place_of_lstm,) = [number for number, row in enumerate(rows) if row.startswith(lstm)]
    assert rows[place_of_lstm - 1].startswith("| – |")
    assert call(place, "--check") == 0
