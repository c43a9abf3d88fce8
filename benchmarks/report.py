"""``python -m benchmarks.report``: write the README's results and the plots from the JSON files.

Every number between the README's two markers comes from the newest results file of its suite. A
file that names a disagreement, or a quick run, is refused: nothing older is shown in its place.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import SOURCE_KEY, plot_source, speed_up_plot

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results:start -->", "<!-- results:end -->"
NOTHING_YET = "No results have been measured yet."

Results = dict[str, Any]


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
        if args.check:
            return _check(readme, old == new, newest, folder)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    for path, results in newest.values():
        speed_up_plot(results, plot_path(folder, results), {SOURCE_KEY: path.name})
    readme.write_text(new, encoding="utf-8")
    print(f"{readme.name}: {'unchanged' if old == new else 'rewritten'}")
    return 0


def newest_per_suite(folder: Path) -> dict[str, tuple[Path, Results]]:
    """The newest results of each suite, by the date inside the file.

    Raises:
        ReportError: a newest file has a red or empty correctness list, no rows, or is a quick run.
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
    red = [row for row in results["correctness"] if row["ok"] is not True]
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
        plot = plot_path(folder, results)
        link = plot.relative_to(base) if plot.is_relative_to(base) else plot
        picture = f"![How many times faster, suite {suite}]({link.as_posix()})"
        parts += [f"### Suite `{suite}`", where_and_with_what(results), table(results)]
        parts += [*peers_table(results), picture]
    return "\n\n".join(parts)


def where_and_with_what(results: Results) -> str:
    """One paragraph: commit, device, versions, and how near the gate came to its bound."""
    meta = results["meta"]
    versions = [f"{n} {meta[n]}" for n in ("python", "torch", "pyro", "jax", "triton", "cuda") if meta.get(n)]
    driver = f", driver {meta['driver']}" if meta["driver"] else ""
    closest = max(row["max_rel_error"] / row["bound"] for row in results["correctness"])
    text = (
        f"Measured {meta['date'][:10]} at commit `{meta['commit']}` on {meta['device']}{driver}, "
        f"{meta['threads']} of {meta['cpus']} threads, load {meta['load']:.2f} before the start; "
        f"{', '.join(versions)}. {len(results['correctness'])} checks against the baseline passed "
        f"in the same run, the closest at {closest:.0%} of its bound."
    )
    return f"{text} **Beware: {meta['load_warning']}.**" if meta.get("load_warning") else text


def table(results: Results) -> str:
    """A Markdown table: a row for each case and contestant, a ratio to each baseline."""
    baselines = list(results["cases"][0]["extra"]["speed_up"])
    titles = ["case", "implementation", "median, ms", "min to max, ms", "n"]
    titles += [f"times faster than {baseline}" for baseline in baselines]
    lines = [_row(titles), "|---|---|" + "--:|" * (len(titles) - 2)]
    for row in results["cases"]:
        cells = [
            row["case"],
            row["impl"],
            f"{row['median_ms']:.1f}",
            f"{row['min_ms']:.1f} to {row['max_ms']:.1f}",
            str(row["n"]),
        ]
        for baseline in baselines:
            cells.append(_ratio(row["extra"]["speed_up"][baseline]))
        lines.append(_row(cells))
    legend = "Ratios are taken round by round: their median, lowest and highest in brackets."
    return "\n".join([*lines, "", legend])


def peers_table(results: Results) -> list[str]:
    """How many times faster ours are than the peers without Pyro; nothing where none was timed."""
    rows = [row for row in results["cases"] if row["extra"].get("against_peers")]
    if not rows:
        return []
    peers = list(dict.fromkeys(peer for row in rows for peer in row["extra"]["against_peers"]))
    titles = ["case", "implementation", *(f"times faster than {peer}" for peer in peers)]
    lines = [_row(titles), "|---|---|" + "--:|" * len(peers)]
    for row in rows:
        ratios = row["extra"]["against_peers"]
        lines.append(_row([row["case"], row["impl"], *(_ratio(ratios.get(peer)) for peer in peers)]))
    return ["Against the same step without Pyro, also round by round:", "\n".join(lines)]


def _ratio(faster: dict[str, float] | None) -> str:
    if faster is None:
        return ""
    return f"{faster['median']:.2f} ({faster['low']:.2f} to {faster['high']:.2f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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


def _check(readme: Path, same: bool, newest: dict[str, tuple[Path, Results]], folder: Path) -> int:
    stale = [] if same else [readme.name]
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
