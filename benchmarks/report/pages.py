"""Markdown written by the report: the README's section, the results page's, and the page of all tables."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import ablations, gpu, gradient_variance, guides, quality, steps, to_target
from benchmarks.report.highlights import highlights
from benchmarks.report.parts import Part, Picture
from benchmarks.report.results import ReportError, Results

START, END = "<!-- results:start -->", "<!-- results:end -->"
NOTHING_YET = "No results have been measured yet."
# Suites that are not tables of SVI steps.
OTHERS = {
    **dict.fromkeys(("gpu", "gpu-first", "gpu-second"), gpu),
    "cpu-quality": to_target,
    "cpu-guides": guides,
    "quality": quality,
    ablations.SUITE: ablations,
    "gradient-variance": gradient_variance,
}

Newest = dict[str, tuple[Path, Results]]


def overview_parts(results: Results) -> list[Part]:
    """Parts of a suite on the results page."""
    return OTHERS.get(results["suite"], steps).overview_parts(results)


def page_parts(results: Results) -> list[Part]:
    """Parts of a suite on the page of all tables: every picture of the other pages is among them."""
    return OTHERS.get(results["suite"], steps).page_parts(results)


def readme_section(newest: Newest, folder: Path, base: Path) -> str:
    """Section of the README; links are relative to ``base``."""
    parts = highlights({suite: results for suite, (_, results) in newest.items()})
    return _markdown(parts, lambda name: _link(folder / name, base)) or NOTHING_YET


def overview_section(newest: Newest, folder: Path, base: Path) -> str:
    """Section of the results page: the main tables and all pictures; links are relative to ``base``."""
    if not newest:
        return NOTHING_YET
    parts: list[Part] = []
    for suite, (_, results) in newest.items():
        parts += [f"## Suite `{suite}`", *overview_parts(results)]
    all_tables = _link(tables_path(folder), base)
    parts.append(f"[All tables]({all_tables}): over sizes and threads, errors of every op.")
    return _markdown(parts, lambda name: _link(folder / name, base))


def tables_page(newest: Newest) -> str:
    """Every table of every suite, for the page beside the JSON files."""
    parts: list[Part] = [
        "# All tables",
        "Written by `python -m benchmarks.report` from the JSON files beside it.",
    ]
    for suite, (path, results) in newest.items():
        where = f"the files in `{path.name}/`" if "source" in results else f"`{path.name}`"
        parts += [f"## Suite `{suite}`", f"From {where}.", *page_parts(results)]
    return _markdown(parts, lambda name: name) + "\n"


def tables_path(folder: Path) -> Path:
    """The page of all tables: code hosts show the README of a folder below its files."""
    return folder / "README.md"


def pictures(newest: Newest) -> list[tuple[Picture, str]]:
    """Every plot with the name of the file, or a description of the files, that it is drawn from."""
    return [
        (part, results.get("source", path.name))
        for path, results in newest.values()
        for part in page_parts(results)
        if isinstance(part, Picture)
    ]


def with_section(name: str, page: str, text: str) -> str:
    """``page`` with ``text`` between its markers; ``name`` is for the message.

    Raises:
        ReportError: the markers are not there exactly once, in order.
    """
    places = [page.find(START), page.find(END)]
    once = page.count(START) == page.count(END) == 1
    if not once or places != sorted(places):
        raise ReportError(f"{name}: expected one {START} followed by one {END}")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def _markdown(parts: Sequence[Part], link: Callable[[str], str]) -> str:
    texts = [f"![{part.shows}]({link(part.name)})" if isinstance(part, Picture) else part for part in parts]
    return "\n\n".join(filter(None, texts))


def _link(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
