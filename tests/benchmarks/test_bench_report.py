"""The README says what the newest results say, or nothing."""

import json

import pytest

from benchmarks import report

RATIO = {"median": 2.5, "low": 2.0, "high": 3.0}
EMPTY = f"# Title\n\n{report.START}\nold text\n{report.END}\n\nAfter.\n"


def a_run(date="2026-01-02T00:00:00+00:00", **changes):
    results = {
        "suite": "cpu",
        "meta": {
            "date": date,
            "commit": "abc1234",
            "quick": False,
            "device": "A Processor",
            "driver": None,
            "threads": 2,
            "cpus": 2,
            "load": 0.05,
            "load_warning": None,
            "python": "3.11",
            "torch": "2.13.0",
            "pyro": "1.9.2",
            "triton": None,
            "cuda": None,
        },
        "correctness": [
            {
                "op": "SVI loss",
                "backend": "dmm_fast",
                "case": "a step",
                "max_rel_error": 1e-6,
                "bound": 1e-5,
                "ok": True,
            }
        ],
        "cases": [
            {
                "suite": "cpu",
                "case": "a step",
                "impl": "dmm_fast",
                "median_ms": 123.44,
                "min_ms": 120.0,
                "max_ms": 130.06,
                "n": 7,
                "extra": {"speed_up": {"tutorial": RATIO}},
            }
        ],
    }
    results["meta"].update(changes)
    return results


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
    put(place, "a.json", results)
    assert call(place) == 0
    text = (place / "README.md").read_text()
    assert "| case | implementation | times faster than one | times faster than another |" in text
    assert "| a step | dmm_fast | 2.50 (2.00 to 3.00) | 1.25 (1.00 to 1.50) |" in text
    assert "| an epoch | dmm_fast | 2.50 (2.00 to 3.00) |  |" in text
    assert "| a step | one | 2.50" not in text


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
    gpu = a_run(commit="other", device="A GPU", driver="1.2", cuda="13.0")
    gpu["suite"] = "gpu"
    put(place, "gpu.json", gpu)
    assert call(place) == 0
    text = (place / "README.md").read_text()
    assert "`newer`" in text
    assert "older" not in text
    assert text.index("### Suite `cpu`") < text.index("### Suite `gpu`")
    assert "A GPU, driver 1.2" in text


def failed(results):
    results["correctness"].append(dict(results["correctness"][0], op="SVI gradients", ok=False))


def unchecked(results):
    results["correctness"].clear()


def quick(results):
    results["meta"]["quick"] = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(failed, "SVI gradients of dmm_fast"), (unchecked, "got none"), (quick, "a quick one")],
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
