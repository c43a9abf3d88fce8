"""``python -m benchmarks.report``: write the README's results, all tables and the plots from the JSON files.

Every number between the README's two markers, and in the page beside the JSON files, comes from the
newest results file of its suite. A file that names a disagreement, or a quick run, is refused: nothing
older is shown in its place.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plots import SOURCE_KEY, plot_source, scaling_plot, speed_up_plot
from benchmarks.tables import (
    Results,
    errors_sentence,
    errors_table,
    peers_table,
    scaling_table,
    table,
    where_and_with_what,
)

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results:start -->", "<!-- results:end -->"
NOTHING_YET = "No results have been measured yet."


class ReportError(ValueError):
    """The results or the README are not fit to report from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write README and plots, or with ``--check`` only compare. Returns 1 when amiss."""
    args = _parser().parse_args(argv)
    readme, folder = Path(args.readme), Path(args.results)
    try:
        newest = newest_per_suite(folder)
        old = readme.read_text(encoding="utf-8")
        new = with_section(old, section(newest, folder, readme.parent))
        page = all_tables(newest, folder)
        if args.check:
            return _check(readme, old == new, newest, folder, page)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    for path, results in newest.values():
        draw(results, plot_path(folder, results), path.name)
    readme.write_text(new, encoding="utf-8")
    page_path(folder).write_text(page, encoding="utf-8")
    print(f"{readme.name}: {'unchanged' if old == new else 'rewritten'}")
    return 0


def newest_per_suite(folder: Path) -> dict[str, tuple[Path, Results]]:
    """The newest results of each suite, by the date inside the file.

    Raises:
        ReportError: a newest file has an error beyond its bound, nothing checked, no rows, or is a
            quick run.
    """
    newest: dict[str, tuple[Path, Results]] = {}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        known = newest.get(results["suite"])
        if known is None or results["meta"]["date"] >= known[1]["meta"]["date"]:
            newest[results["suite"]] = (path, results)
    for path, results in newest.values():
        _refuse_unfit(path, results)
    return dict(sorted(newest.items()))


def _refuse_unfit(path: Path, results: Results) -> None:
    red = [row for row in results["correctness"] + results.get("errors", []) if row["ok"] is not True]
    if red:
        first = f"{red[0]['op']} of {red[0]['backend']} on {red[0]['case']}"
        raise ReportError(f"{path.name}: correctness: expected all ok, got a failure: {first}")
    if not results["correctness"] or not results["cases"]:
        raise ReportError(f"{path.name}: expected checked and timed cases, got none")
    if results["meta"]["quick"]:
        raise ReportError(f"{path.name}: expected a full run, got a quick one")


def section(newest: dict[str, tuple[Path, Results]], folder: Path, base: Path) -> str:
    """The Markdown that belongs between the markers; links are relative to ``base``."""
    if not newest:
        return NOTHING_YET
    parts = []
    for suite, (_, results) in newest.items():
        short = "" if axes_of(results) else "\n\n".join(filter(None, (table(results), peers_table(results))))
        parts += [f"### Suite `{suite}`", where_and_with_what(results), short, picture(results, folder, base)]
        parts.append(errors_sentence(results))
    parts.append(
        f"[All tables]({_link(page_path(folder), base)}): over sizes and threads, errors of every op."
    )
    return "\n\n".join(filter(None, parts))


def all_tables(newest: dict[str, tuple[Path, Results]], folder: Path) -> str:
    """The page beside the JSON files: every table of every suite."""
    parts = ["# Results", "Written by `python -m benchmarks.report` from the JSON files beside it."]
    for suite, (path, results) in newest.items():
        times = scaling_table(results) if axes_of(results) else table(results)
        parts += [f"## Suite `{suite}`", f"From `{path.name}`.", where_and_with_what(results), times]
        parts += [peers_table(results), picture(results, folder, folder), errors_table(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def picture(results: Results, folder: Path, base: Path) -> str:
    """The suite's plot in Markdown."""
    axes = axes_of(results)
    shown = f"Milliseconds over {', '.join(axes)}" if axes else "How many times faster"
    return f"![{shown}, suite {results['suite']}]({_link(plot_path(folder, results), base)})"


def _link(path: Path, base: Path) -> str:
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def axes_of(results: Results) -> list[str]:
    """Along what the cases of a scaling suite grow; empty for other suites."""
    return list(dict.fromkeys(axis for row in results["cases"] for axis in row["extra"].get("along", {})))


def draw(results: Results, path: Path, source: str) -> None:
    """The suite's plot, with the name of its results file inside."""
    metadata, axes = {SOURCE_KEY: source}, axes_of(results)
    if axes:
        scaling_plot(results, axes, path, metadata)
    else:
        speed_up_plot(results, path, metadata)


def with_section(readme: str, text: str) -> str:
    """``readme`` with what stands between the markers replaced by ``text``.

    Raises:
        ReportError: the markers are not there exactly once, in order.
    """
    places = [readme.find(START), readme.find(END)]
    once = readme.count(START) == readme.count(END) == 1
    if not once or places != sorted(places):
        raise ReportError(f"README: expected one {START} followed by one {END}")
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def plot_path(folder: Path, results: Results) -> Path:
    """Where the suite's plot lies."""
    return folder / f"{results['suite']}.png"


def page_path(folder: Path) -> Path:
    """Where all tables lie: a folder's README is what people are shown of it."""
    return folder / "README.md"


def _check(readme: Path, same: bool, newest: dict[str, tuple[Path, Results]], folder: Path, page: str) -> int:
    stale = [] if same else [readme.name]
    written = page_path(folder)
    if not written.is_file() or written.read_text(encoding="utf-8") != page:
        stale.append(f"{folder.name}/{written.name}")
    for path, results in newest.values():
        plot = plot_path(folder, results)
        if plot_source(plot) != path.name:
            stale.append(plot.name)
    if stale:
        print(
            f"report: stale: {', '.join(stale)}; run python -m benchmarks.report",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    parser.add_argument("--results", default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", default=ROOT / "README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
