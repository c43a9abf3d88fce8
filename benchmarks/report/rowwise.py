"""The rowwise ops on a GPU, and the measured roofline that their times are compared with."""

from benchmarks.report.markdown import NOT_RUN, NOTHING, percent, table, three_digits
from benchmarks.report.results import Results, Row, distinct, rows_of

# Units of a rate by what it counts: (size, name).
COPY, PRODUCT = "copy", "fp32 matrix product"
UNITS = {"bytes": (1e9, "GB/s"), "operations": (1e12, "TFLOP/s")}


def rowwise_table(results: Results) -> str:
    """A row for each call, a column for each implementation; empty if none was timed."""
    rows = rows_of(results, "rowwise")
    if not rows:
        return ""
    names, peaks = distinct(row["impl"] for row in rows), roofline_of(results)
    lines = []
    for case in distinct(row["case"] for row in rows):
        mine = {row["impl"]: row for row in rows if row["case"] == case}
        floor = floor_ms(next(iter(mine.values())), peaks)
        cells = [_time_and_share(mine.get(name), floor) for name in names]
        lines.append([case, NOTHING if floor is None else three_digits(1e3 * floor), *cells])
    shown = table(["call", "floor, us", *(f"{name}, us" for name in names)], lines, texts=1)
    legend = (
        "In brackets, the floor as a fraction of the time. The floor is the time of the call's bytes and "
        "operations at the measured roofline, each array read or written once. `reference` is eager PyTorch; "
        "`graph`: replayed from a CUDA graph, without the launch overhead of the host."
    )
    return "\n\n".join([shown, legend])


def roofline_of(results: Results) -> tuple[float, float] | None:
    """The measured bytes and operations per second; None if one of them was not measured."""
    rates = {row["case"]: row["extra"]["per_second"] for row in rows_of(results, "roofline")}
    return (rates[COPY], rates[PRODUCT]) if {COPY, PRODUCT} <= rates.keys() else None


def floor_ms(row: Row, peaks: tuple[float, float] | None) -> float | None:
    """The time of a row's bytes or operations, whichever is longer; None without a measured roofline."""
    work = row["extra"]
    return peaks and 1e3 * max(work["bytes"] / peaks[0], work["flops"] / peaks[1])


def _time_and_share(row: Row | None, floor: float | None) -> str:
    if row is None:
        return NOT_RUN
    share = floor / row["median_ms"] if floor is not None and row["median_ms"] > 0 else None
    return f"{three_digits(1e3 * row['median_ms'])} ({percent(share)})"


def roofline_table(results: Results) -> str:
    """The measured peak rates of the device; empty if they were not measured."""
    rows = rows_of(results, "roofline")
    if not rows:
        return ""
    lines = []
    for row in rows:
        extra = row["extra"]
        unit, name = UNITS[extra["of"]]
        lines.append([row["case"], extra["size"], f"{three_digits(extra['per_second'] / unit)} {name}"])
    return f"Measured roofline:\n\n{table(['what', 'size', 'rate'], lines, texts=2)}"
