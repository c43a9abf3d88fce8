"""SVI steps and epochs: tables of implementations, and the sections of the CPU suites."""

from collections.abc import Sequence
from functools import partial

from benchmarks.report.accuracy import errors_sentence, errors_table
from benchmarks.report.markdown import NOT_RUN, NOTHING, milliseconds, ratio, table
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import first_baseline, scaling_plot, speed_up_plot
from benchmarks.report.results import (
    IEEE,
    Results,
    Row,
    case_and_precision,
    distinct,
    precision_of,
    where_and_with_what,
)

MEGABYTE = 1e6
PEAKS = ("peak_resident_bytes", "peak_allocated_bytes")  # a CPU's, a GPU's


def overview_parts(results: Results) -> list[Part]:
    """The parts for the README; a scaling suite is shown by its plot alone."""
    rows = results["cases"]
    short: list[str] = [] if axes_of(rows) else [implementations_table(rows), peers_table(rows)]
    return [where_and_with_what(results), *short, picture(results), errors_sentence(results)]


def page_parts(results: Results) -> list[Part]:
    """Every table."""
    rows = results["cases"]
    times = scaling_table(results) if axes_of(rows) else implementations_table(rows)
    tables = [where_and_with_what(results), times, peers_table(rows)]
    return [*tables, picture(results), errors_table(results)]


def picture(results: Results) -> Picture:
    """Speed-ups, or milliseconds along the axes of a scaling suite."""
    name, rows, meta = results["suite"], results["cases"], results["meta"]
    axes = axes_of(rows)
    if axes:
        draw = partial(scaling_plot, rows, axes, meta)
        return Picture(f"{name}.png", f"Milliseconds over {', '.join(axes)}, suite {name}", draw)
    return Picture(f"{name}.png", f"How many times faster, suite {name}", partial(speed_up_plot, rows, meta))


def axes_of(rows: Sequence[Row]) -> list[str]:
    """The axes of a scaling suite; empty for other suites."""
    return distinct(axis for row in rows for axis in row["extra"].get("along", {}))


def implementations_table(rows: Sequence[Row]) -> str:
    """A row for each case and implementation, a ratio to each baseline."""
    baselines = distinct(b for row in rows for b in row["extra"]["speed_up"])
    with_peak = _any_peak(rows)
    titles = ["case", "implementation", "median, ms", "min to max, ms", "n", *["peak, MB"] * with_peak]
    titles += [f"times faster than {baseline}" for baseline in baselines]
    lines = []
    for row in rows:
        spread = f"{milliseconds(row['min_ms'])} to {milliseconds(row['max_ms'])}"
        cells = [case_and_precision(row), row["impl"], milliseconds(row["median_ms"]), spread, str(row["n"])]
        cells += [_peak(row)] * with_peak
        lines.append([*cells, *(times_faster(row, baseline, unpaired=NOTHING) for baseline in baselines)])
    legend = [_legend(with_peak), *_legend_of_pairs(rows, baselines)]
    return "\n\n".join([table(titles, lines, texts=2), " ".join(legend)])


def headline_table(rows: Sequence[Row]) -> str:
    """A row for each implementation, its median and its ratio to the first baseline in each case."""
    names, cases = distinct(row["impl"] for row in rows), distinct(map(case_and_precision, rows))
    baseline = first_baseline(rows)
    titles = ["implementation"]
    for case in cases:
        titles += [f"{case}: ms", *([f"times faster than {baseline}"] if baseline else [])]
    lines = []
    for name in names:
        mine = {case_and_precision(row): row for row in rows if row["impl"] == name}
        cells = [name]
        for case in cases:
            row = mine.get(case)
            cells.append(milliseconds(row["median_ms"]) if row else NOT_RUN)
            cells += [times_faster(row, baseline, unpaired=NOTHING)] if baseline else []
        lines.append(cells)
    legend = [_legend(with_peak=False), *_legend_of_pairs(rows, [baseline] if baseline else [])]
    return "\n\n".join([table(titles, lines, texts=1), " ".join(legend)])


def peers_table(rows: Sequence[Row]) -> str:
    """Speed-ups of this package over the peers without Pyro; empty if none was timed."""
    rows = [row for row in rows if row["extra"].get("against_peers")]
    if not rows:
        return ""
    peers = distinct(peer for row in rows for peer in row["extra"]["against_peers"])
    titles = ["case", "implementation", *(f"times faster than {peer}" for peer in peers)]
    lines = []
    for row in rows:
        ratios = [times_faster(row, peer, "against_peers") for peer in peers]
        lines.append([case_and_precision(row), row["impl"], *ratios])
    return f"The same step without Pyro, ratios also taken round by round:\n\n{table(titles, lines, texts=2)}"


def scaling_table(results: Results) -> str:
    """A row for each case: the time of each implementation, and ratios to each baseline."""
    rows = results["cases"]
    names = distinct(row["impl"] for row in rows)
    baselines = distinct(b for row in rows for b in row["extra"]["speed_up"])
    pairs = [(name, baseline) for name in names if name not in baselines for baseline in baselines]
    with_peak = _any_peak(rows)
    titles = ["case", *names, *(f"{name}, times faster than {baseline}" for name, baseline in pairs)]
    lines = []
    for case in distinct(row["case"] for row in rows):
        mine = {row["impl"]: row for row in rows if row["case"] == case}
        cells = [_time_and_peak(mine.get(name), with_peak) for name in names]
        cells += [times_faster(mine.get(name), baseline) for name, baseline in pairs]
        lines.append([case, *cells])
    notes = [_legend(with_peak), *_skipped(results), checked_in_parts(rows)]
    return "\n\n".join([table(titles, lines, texts=1), " ".join(filter(None, notes))])


def checked_in_parts(rows: Sequence[Row]) -> str:
    """A sentence on the cases too large for a float64 check, and the checks made instead; empty if none."""
    large = distinct(r["case"] for r in rows if r["extra"].get("checked_on", [r["case"]]) != [r["case"]])
    if not large:
        return ""
    return (
        "Too large for a float64 check, hence checked on two smaller cases, one with as many rows and one "
        f"with as many steps, and in float32 against each other: {'; '.join(large)}."
    )


def peak_mb(row: Row) -> float | None:
    """The peak memory of a run of the row's implementation; None if it was not measured."""
    known = [row["extra"][name] for name in PEAKS if row["extra"].get(name) is not None]
    return known[0] / MEGABYTE if known else None


def _any_peak(rows: Sequence[Row]) -> bool:
    return any(peak_mb(row) is not None for row in rows)


def _peak(row: Row) -> str:
    peak = peak_mb(row)
    return NOTHING if peak is None else f"{peak:.0f}"


def _time_and_peak(row: Row | None, with_peak: bool) -> str:
    if row is None:
        return NOT_RUN
    return f"{milliseconds(row['median_ms'])} ms" + (f", {_peak(row)} MB" if with_peak else "")


def _skipped(results: Results) -> list[str]:
    rows = results.get("not_run", [])
    return [f"Skipped: {row['impl']} in {row['case']}; {row['why']}." for row in rows]


def times_faster(row: Row | None, than: str, kind: str = "speed_up", unpaired: str = NOT_RUN) -> str:
    """The ratio with its range; ``unpaired`` for a row that was not timed interleaved with ``than``."""
    if row is None:
        return NOT_RUN
    faster = row["extra"][kind].get(than)
    if faster is None:
        return unpaired
    return f"{ratio(faster['median'])} ({ratio(faster['low'])} to {ratio(faster['high'])})"


def _legend_of_pairs(rows: Sequence[Row], baselines: Sequence[str]) -> list[str]:
    """Sentences on the meaning of a dash, and on the default precision, where the rows need them."""
    unpaired = any(baseline not in row["extra"]["speed_up"] for row in rows for baseline in baselines)
    mixed = any(precision_of(row) not in ("", IEEE) for row in rows)
    notes = [f"{NOTHING}: not timed interleaved with that baseline."] * unpaired
    return notes + ["Products of float32 are IEEE unless the case says otherwise."] * mixed


def _legend(with_peak: bool) -> str:
    ratios = "Ratios are taken round by round: the median, with the lowest and highest in brackets."
    peak = " Peak: the increase of the memory in use during a run."
    return ratios + peak * with_peak
