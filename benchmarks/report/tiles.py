"""A sweep of tiles: for each launch of a step, the chosen tiles beside the fastest ones."""

from benchmarks.report.markdown import cell, ratio, table, three_digits
from benchmarks.report.results import Results, distinct, rows_of

SUITE = "tiles"


def tiles_table(results: Results) -> str:
    """A row for each launch whose chosen tiles were timed; empty if there are none."""
    rows = rows_of(results, SUITE)
    lines = []
    for launch in distinct(row["case"] for row in rows):
        timed = [row for row in rows if row["case"] == launch]
        for chosen in (row for row in timed if row["extra"]["chosen"]):
            best = min(timed, key=lambda row: row["median_ms"])
            names = [cell(launch), chosen["impl"], best["impl"]]
            us = [three_digits(1e3 * row["median_ms"]) for row in (chosen, best)]
            lines.append([*names, *us, ratio(chosen["median_ms"] / best["median_ms"]), str(len(timed))])
    if not lines:
        return ""
    titles = ["launch", "chosen", "fastest", "chosen, us", "fastest, us", "times faster", "timed"]
    legend = "Each launch is replayed from a graph on the same data. Tiles are rows x columns x inputs."
    return "\n\n".join([table(titles, lines, texts=3), legend])
