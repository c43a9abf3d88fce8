"""``python -m benchmarks.report``: write all results, tables and plots, from the JSON files.

Every number between the two markers of the README and of the results page, and on the page beside the JSON
files, comes from the newest results file of its suite; in the suite ``quality``, whose files hold a run each,
from all of them. A file that names a disagreement, or a quick run, is refused: nothing older is shown in its
place.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.quality.runs import SUITE
from benchmarks.report import ablations
from benchmarks.report.pages import (
    Newest,
    overview_section,
    pictures,
    readme_section,
    tables_page,
    tables_path,
    with_section,
)
from benchmarks.report.plots import plot_source, save
from benchmarks.report.quality import quality_results
from benchmarks.report.results import ReportError, newest_per_suite


def main(argv: Sequence[str] | None = None) -> int:
    """Write pages and plots, or with ``--check`` only compare. Returns 1 if a page is stale or unfit."""
    args = _parser().parse_args(argv)
    readme, overview, folder = Path(args.readme), Path(args.page), Path(args.results)
    try:
        runs = folder / SUITE
        newest = newest_per_suite(folder, args.quick) | quality_results(runs)
        newest = dict(sorted((newest | quality_results(runs / "ablations", ablations.SUITE)).items()))
        pages = {tables_path(folder): tables_page(newest)}
        for path, section in ((readme, readme_section), (overview, overview_section)):
            text = section(newest, folder, path.parent)
            pages[path] = with_section(path.name, path.read_text(encoding="utf-8"), text)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    stale = [os.path.relpath(path, readme.parent) for path, text in pages.items() if not _holds(path, text)]
    if args.check:
        return _check(stale, newest, folder)
    for picture, source in pictures(newest):
        save(picture.draw(), folder / picture.name, source)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    print(f"rewritten: {', '.join(stale) or 'nothing'}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _check(pages: Sequence[str], newest: Newest, folder: Path) -> int:
    stale = [*pages]
    stale += [p.name for p, source in pictures(newest) if plot_source(folder / p.name) != source]
    if stale:
        print(
            f"report: stale: {', '.join(stale)}; run python -m benchmarks.report",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if anything is stale")
    parser.add_argument("--quick", action="store_true", help="accept quick runs, to try the report elsewhere")
    parser.add_argument("--results", default=ROOT / "benchmarks" / "results", help="folder of the JSON files")
    parser.add_argument("--readme", default=ROOT / "README.md", help="page with the small table")
    parser.add_argument("--page", default=ROOT / "docs" / "results.md", help="page with the main tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
