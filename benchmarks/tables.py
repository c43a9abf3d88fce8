"""The README's tables and sentences, in Markdown, each from one results file."""

from collections.abc import Callable, Sequence
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]

MEGABYTE = 1e6
PEAKS = ("peak_resident_bytes", "peak_allocated_bytes")  # a CPU's, a GPU's
NOT_RUN = "not run"
NOTHING = "–"


def where_and_with_what(results: Results) -> str:
    """One paragraph: commit, device, versions, and how near the gate came to its bound."""
    meta = results["meta"]
    versions = [f"{n} {meta[n]}" for n in ("python", "torch", "pyro", "jax", "triton", "cuda") if meta.get(n)]
    driver = f", driver {meta['driver']}" if meta["driver"] else ""
    closest = max(map(share_of_bound, results["correctness"]))
    text = (
        f"Measured {meta['date'][:10]} at commit `{meta['commit']}` on {meta['device']}{driver}, "
        f"{meta['threads']} of {meta['cpus']} threads, load {meta['load']:.2f} before the start; "
        f"{', '.join(versions)}. {len(results['correctness'])} checks against the baseline passed "
        f"in the same run, the closest at {closest:.0%} of its bound."
    )
    return f"{text} **Beware: {meta['load_warning']}.**" if meta.get("load_warning") else text


def share_of_bound(row: Row) -> float:
    """How much of its bound an error takes up."""
    return row["max_rel_error"] / row["bound"]


def table(results: Results) -> str:
    """A row for each case and contestant, a ratio to each baseline."""
    rows = results["cases"]
    baselines = list(rows[0]["extra"]["speed_up"])
    with_peak = any(peak_mb(row) is not None for row in rows)
    titles = ["case", "implementation", "median, ms", "min to max, ms", "n"]
    titles += ["peak, MB"] * with_peak + [f"times faster than {baseline}" for baseline in baselines]
    lines = _head(titles, texts=2)
    for row in rows:
        cells = [
            row["case"],
            row["impl"],
            f"{row['median_ms']:.1f}",
            f"{row['min_ms']:.1f} to {row['max_ms']:.1f}",
            str(row["n"]),
        ]
        cells += [_peak(row)] * with_peak + [_faster(row, baseline) for baseline in baselines]
        lines.append(_row(cells))
    return "\n".join([*lines, "", _legend(with_peak)])


def peers_table(results: Results) -> str:
    """How many times faster ours are than the peers without Pyro; empty where none was timed."""
    rows = [row for row in results["cases"] if row["extra"].get("against_peers")]
    if not rows:
        return ""
    peers = list(dict.fromkeys(peer for row in rows for peer in row["extra"]["against_peers"]))
    lines = _head(["case", "implementation", *(f"times faster than {peer}" for peer in peers)], texts=2)
    for row in rows:
        ratios = [_faster(row, peer, "against_peers") for peer in peers]
        lines.append(_row([row["case"], row["impl"], *ratios]))
    return "\n".join(["Against the same step without Pyro, also round by round:", "", *lines])


def scaling_table(results: Results) -> str:
    """A row for each case: what each contestant takes, and the others' ratios to each baseline."""
    rows = results["cases"]
    names = list(dict.fromkeys(row["impl"] for row in rows))
    baselines = list(dict.fromkeys(b for row in rows for b in row["extra"]["speed_up"]))
    pairs = [(name, baseline) for name in names if name not in baselines for baseline in baselines]
    with_peak = any(peak_mb(row) is not None for row in rows)
    titles = ["case", *names, *(f"{name}, times faster than {baseline}" for name, baseline in pairs)]
    lines = _head(titles, texts=1)
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = {row["impl"]: row for row in rows if row["case"] == case}
        cells = [_time_and_peak(mine.get(name), with_peak) for name in names]
        cells += [_faster(mine.get(name), baseline) for name, baseline in pairs]
        lines.append(_row([case, *cells]))
    notes = [_legend(with_peak), *_left_out(results), *_checked_in_parts(rows)]
    return "\n".join([*lines, "", " ".join(notes)])


def _time_and_peak(row: Row | None, with_peak: bool) -> str:
    if row is None:
        return NOT_RUN
    return f"{row['median_ms']:.1f} ms" + (f", {_peak(row)} MB" if with_peak else "")


def _left_out(results: Results) -> list[str]:
    skipped = results.get("not_run", [])
    return [f"Not run: {s['impl']} in {s['case']}; {s['why']}." for s in skipped]


def _checked_in_parts(rows: Sequence[Row]) -> list[str]:
    large = list(
        dict.fromkeys(r["case"] for r in rows if r["extra"].get("checked_on", [r["case"]]) != [r["case"]])
    )
    if not large:
        return []
    return [
        "Too large to be checked against float64 themselves, hence checked on smaller cases with as many "
        f"rows and with as many steps, and in float32 against each other: {'; '.join(large)}."
    ]


def _faster(row: Row | None, than: str, kind: str = "speed_up") -> str:
    faster = None if row is None else row["extra"][kind].get(than)
    if faster is None:
        return NOT_RUN
    return f"{faster['median']:.2f} ({faster['low']:.2f} to {faster['high']:.2f})"


def peak_mb(row: Row) -> float | None:
    """What a run of the row's contestant takes in memory at most; None where nobody knows."""
    known = [row["extra"][name] for name in PEAKS if row["extra"].get(name) is not None]
    return known[0] / MEGABYTE if known else None


def _peak(row: Row) -> str:
    peak = peak_mb(row)
    return NOTHING if peak is None else f"{peak:.0f}"


def _legend(with_peak: bool) -> str:
    ratios = "Ratios are taken round by round: their median, lowest and highest in brackets."
    peak = " Peak: how far a run raises the memory in use above what it was before."
    return ratios + peak * with_peak


# --- errors of single ops ---------------------------------------------------------------------------


def errors_sentence(results: Results) -> str:
    """How near the ops came to the bounds of their errors; empty where none was measured."""
    rows = results.get("errors")
    if not rows:
        return ""
    ops, closest = {_op(row) for row in rows}, max(map(share_of_bound, rows))
    return (
        f"{len(rows)} values and gradients of {len(ops)} ops were held to float64 in the same run; "
        f"the bound is {results['errors_about']['eager_factor']:g} times what eager PyTorch errs in "
        f"float32, and the closest came to {closest:.0%} of it."
    )


def errors_table(results: Results) -> str:
    """For each op the value and the gradient that come nearest to their bounds."""
    if "errors" not in results:
        return "Errors of single ops against float64: not measured in this run."
    rows = results["errors"]
    if not rows:
        return ""
    titles = ["op", "backend", "value", "error", "times eager's", "gradient", "error", "times eager's"]
    lines = _head(titles, texts=2)
    for backend, op in dict.fromkeys((row["backend"], _op(row)) for row in rows):
        mine = [row for row in rows if (row["backend"], _op(row)) == (backend, op)]
        values = _nearest(mine, lambda name: name.startswith("value"))
        gradients = _nearest(mine, lambda name: not name.startswith("value"))
        lines.append(_row([f"`{op}`", backend, *values, *gradients]))
    return "\n".join(["Errors of single ops in float32:", "", *lines, "", _errors_legend(results)])


def _errors_legend(results: Results) -> str:
    about = results["errors_about"]
    cases = " and ".join(dict.fromkeys(row["case"] for row in results["errors"]))
    sizes = ", ".join(f"{name}={size}" for name, size in about["sizes"].items() if name not in "BT")
    return (
        f"Relative to the norm of the float64 truth; medians of {about['seeds']} draws, {cases}, {sizes}. "
        "Of each op the value and the gradient nearest to their bounds are shown. The bound is "
        f"{about['eager_factor']:g} times the error of eager PyTorch in float32 on the same inputs, and at "
        f"least {about['floor']:.1e}. No input of a ReLU is nearer to zero than {about['relu_margin']:.0e}: "
        "there the side it takes is a matter of rounding, for eager PyTorch too."
    )


def _op(row: Row) -> str:
    return row["op"].partition(": ")[0]


def _nearest(rows: Sequence[Row], wanted: Callable[[str], bool]) -> tuple[str, str, str]:
    """Name, error and multiple of eager's of the row nearest to its bound among those wanted."""
    mine = [row for row in rows if wanted(row["op"].partition(": ")[2])]
    if not mine:
        return (NOTHING, NOTHING, NOTHING)
    row = max(mine, key=share_of_bound)
    name = row["op"].partition(": ")[2].removeprefix("gradient of ")
    eager = row["eager_rel_error"]
    times = f"{row['max_rel_error'] / eager:.2f}" if eager > 0 else NOTHING
    return (f"{name}, {row['case'].rpartition(', ')[2]}", f"{row['max_rel_error']:.1e}", times)


# --- Markdown -----------------------------------------------------------------------------------------


def _head(titles: Sequence[str], texts: int) -> list[str]:
    """Titles and the line below them; the first ``texts`` columns hold text, the others numbers."""
    return [_row(titles), "|" + "---|" * texts + "--:|" * (len(titles) - texts)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
