"""Runs of a preset that differ in a setting each: what that setting contributes."""

from collections.abc import Sequence

from benchmarks.quality.evaluation import BOUND, NLL
from benchmarks.report.markdown import NOTHING, cell, table
from benchmarks.report.parts import Part
from benchmarks.report.quality import MEAN, by, intervals_left_out, spread
from benchmarks.report.results import Results, Row, distinct

SUITE = "quality-ablations"


def overview_parts(results: Results) -> list[Part]:
    """A table for each data set and preset."""
    parts: list[Part] = []
    for mine in by(results["runs"], lambda run: (run["fingerprint"], run["preset"])):
        parts += [_sentence(mine), _table(mine)]
    return [*parts, _legend(results)]


def page_parts(results: Results) -> list[Part]:
    """The same parts."""
    return overview_parts(results)


def _sentence(runs: Sequence[Row]) -> str:
    common = [f"`{name}={value}`" for name, value in _common(runs).items()]
    more = f" with {', '.join(common)}" if common else ""
    return f"{cell(runs[0]['data'])}, preset `{runs[0]['preset']}`{more}, and one change a row:"


def _table(runs: Sequence[Row]) -> str:
    titles = ["change", "ended by", "seeds", "epochs", "hours", "validation bound", "test bound", "test NLL"]
    common, lines = _common(runs), []
    # The run without a change first.
    runs = sorted(runs, key=lambda run: _change(run, common))
    for mine in by(runs, lambda run: _change(run, common)):
        figures = [
            [run[what][split][MEAN] for run in mine if run[what][split] is not None]
            for what, split in ((BOUND, "valid"), (BOUND, "test"), (NLL, "test"))
        ]
        seeds = ", ".join(str(run["seed"]) for run in mine)
        length = [spread([run["epochs"] for run in mine], 0)]
        length += [spread([run["seconds"] / 3600 for run in mine], 2)]
        change = _change(mine[0], common) or NOTHING
        ended = cell("; ".join(distinct(run["ended"] for run in mine)))
        lines.append([change, ended, seeds, *length, *[spread(values, 3) for values in figures]])
    return table(titles, lines, texts=3)


def _common(runs: Sequence[Row]) -> dict[str, object]:
    """The changes of the preset that all runs have."""
    first, *others = [intervals_left_out(run["overrides"]) for run in runs]
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _change(run: Row, common: dict[str, object]) -> str:
    own = intervals_left_out(run["overrides"]).items() - common.items()
    return ", ".join(f"`{name}={value}`" for name, value in sorted(own))


def _legend(results: Results) -> str:
    commits = ", ".join(distinct(f"`{run['meta']['commit']}`" for run in results["runs"]))
    machines = ", ".join(distinct(cell(m["device"]) for run in results["runs"] for m in run["machines"]))
    return (
        "Mean of the sequences' averages, nats a time step, lower is better. Runs took place side by side "
        f"with others, so their hours are rough. On {machines}. Commits: {commits}."
    )
