"""The rowwise ops on a GPU, and the measured ceilings that their times are a share of."""

from benchmarks.report.markdown import NOT_RUN, NOTHING, percent, table, three_digits
from benchmarks.report.results import Results, Row, distinct, rows_of

# A rate is given in units of so many, by what it counts.
COPY, PRODUCT = "copy", "fp32 matrix product"
UNITS = {"bytes": (1e9, "GB/s"), "operations": (1e12, "TFLOP/s")}


def rowwise_table(results: Results) -> str:
    """A row for each call, a column for each implementation; empty where none was timed."""
    rows = rows_of(results, "rowwise")
    if not rows:
        return ""
    names, peaks = distinct(row["impl"] for row in rows), ceilings_of(results)
    lines = []
    for case in distinct(row["case"] for row in rows):
        mine = {row["impl"]: row for row in rows if row["case"] == case}
        floor = floor_ms(next(iter(mine.values())), peaks)
        cells = [_time_and_share(mine.get(name), floor) for name in names]
        lines.append([case, NOTHING if floor is None else three_digits(1e3 * floor), *cells])
    shown = table(["call", "floor, us", *(f"{name}, us" for name in names)], lines, texts=1)
    legend = (
        "In brackets the share of the floor in the time: the floor is what the call's bytes and operations "
        "take at the measured ceilings, each array met once. `reference` is eager PyTorch; `graph`: replayed "
        "from a CUDA graph, which leaves out what the host takes to start it."
    )
    return "\n\n".join([shown, legend])


def ceilings_of(results: Results) -> tuple[float, float] | None:
    """The measured bytes and operations a second; None where one of them was not measured."""
    rates = {row["case"]: row["extra"]["per_second"] for row in rows_of(results, "ceilings")}
    return (rates[COPY], rates[PRODUCT]) if {COPY, PRODUCT} <= rates.keys() else None


def floor_ms(row: Row, peaks: tuple[float, float] | None) -> float | None:
    """The least time of a row's bytes and operations, whichever bind; None without measured ceilings."""
    work = row["extra"]
    return peaks and 1e3 * max(work["bytes"] / peaks[0], work["flops"] / peaks[1])


def _time_and_share(row: Row | None, floor: float | None) -> str:
    if row is None:
        return NOT_RUN
    share = floor / row["median_ms"] if floor is not None and row["median_ms"] > 0 else None
    return f"{three_digits(1e3 * row['median_ms'])} ({percent(share)})"


def ceilings_table(results: Results) -> str:
    """What the device does at its best; empty where that was not measured."""
    rows = rows_of(results, "ceilings")
    if not rows:
        return ""
    lines = []
    for row in rows:
        extra = row["extra"]
        unit, name = UNITS[extra["of"]]
        lines.append([row["case"], extra["size"], f"{three_digits(extra['per_second'] / unit)} {name}"])
    return f"Measured ceilings:\n\n{table(['what', 'size', 'rate'], lines, texts=2)}"
