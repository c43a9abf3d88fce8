"""``python -m benchmarks.report``: write the README's results, all tables and the plots from the JSON files.

Every number between the README's two markers, and in the page beside the JSON files, comes from the
newest results file of its suite. A file that names a disagreement, or a quick run, is refused: nothing
older is shown in its place.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.report import gpu, guides, quality, steps
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import plot_source, save
from benchmarks.report.results import ReportError, Results, newest_per_suite

START, END = "<!-- results:start -->", "<!-- results:end -->"
NOTHING_YET = "No results have been measured yet."
# Suites that are not tables of SVI steps.
OTHERS = {"gpu": gpu, "gpu-first": gpu, "gpu-second": gpu, "cpu-quality": quality, "cpu-guides": guides}

Newest = dict[str, tuple[Path, Results]]


def main(argv: Sequence[str] | None = None) -> int:
    """Write README and plots, or with ``--check`` only compare. Returns 1 when amiss."""
    args = _parser().parse_args(argv)
    readme, folder = Path(args.readme), Path(args.results)
    try:
        newest = newest_per_suite(folder, args.quick)
        old = readme.read_text(encoding="utf-8")
        new = with_section(old, section(newest, folder, readme.parent))
        page = all_tables(newest, folder)
        if args.check:
            return _check(readme, old == new, newest, folder, page)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    for picture, source in pictures(newest):
        save(picture.draw(), folder / picture.name, source)
    readme.write_text(new, encoding="utf-8")
    page_path(folder).write_text(page, encoding="utf-8")
    print(f"{readme.name}: {'unchanged' if old == new else 'rewritten'}")
    return 0


def readme_parts(results: Results) -> list[Part]:
    """What the README says of a suite."""
    return OTHERS.get(results["suite"], steps).readme_parts(results)


def page_parts(results: Results) -> list[Part]:
    """What the page of all tables says of a suite: every picture of the README is in it, too."""
    return OTHERS.get(results["suite"], steps).page_parts(results)


def section(newest: Newest, folder: Path, base: Path) -> str:
    """The Markdown that belongs between the markers; links are relative to ``base``."""
    if not newest:
        return NOTHING_YET
    parts: list[Part] = []
    for suite, (_, results) in newest.items():
        parts += [f"### Suite `{suite}`", *readme_parts(results)]
    parts.append(
        f"[All tables]({_link(page_path(folder), base)}): over sizes and threads, errors of every op."
    )
    return _markdown(parts, lambda name: _link(folder / name, base))


def all_tables(newest: Newest, folder: Path) -> str:
    """The page beside the JSON files: every table of every suite."""
    parts: list[Part] = [
        "# Results",
        "Written by `python -m benchmarks.report` from the JSON files beside it.",
    ]
    for suite, (path, results) in newest.items():
        parts += [f"## Suite `{suite}`", f"From `{path.name}`.", *page_parts(results)]
    return _markdown(parts, lambda name: name) + "\n"


def pictures(newest: Newest) -> list[tuple[Picture, str]]:
    """Every plot with the name of the file it is drawn from."""
    return [
        (part, path.name)
        for path, results in newest.values()
        for part in page_parts(results)
        if isinstance(part, Picture)
    ]


def _markdown(parts: Sequence[Part], link: Callable[[str], str]) -> str:
    texts = [f"![{part.shows}]({link(part.name)})" if isinstance(part, Picture) else part for part in parts]
    return "\n\n".join(filter(None, texts))


def _link(path: Path, base: Path) -> str:
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


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


def page_path(folder: Path) -> Path:
    """Where all tables lie: a folder's README is what people are shown of it."""
    return folder / "README.md"


def _check(readme: Path, same: bool, newest: Newest, folder: Path, page: str) -> int:
    stale = [] if same else [readme.name]
    written = page_path(folder)
    if not written.is_file() or written.read_text(encoding="utf-8") != page:
        stale.append(f"{folder.name}/{written.name}")
    stale += [p.name for p, source in pictures(newest) if plot_source(folder / p.name) != source]
    if stale:
        print(
            f"report: stale: {', '.join(stale)}; run python -m benchmarks.report",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    parser.add_argument("--quick", action="store_true", help="accept quick runs, to try the report elsewhere")
    parser.add_argument("--results", default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", default=ROOT / "README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
