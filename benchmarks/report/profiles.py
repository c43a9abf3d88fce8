"""Profiles of one step: its longest kernels, and the time for which the GPU is busy."""

from benchmarks.report.markdown import code, percent, table, three_digits
from benchmarks.report.results import Results, Row

TOP = 15
LONGEST_NAME = 90


def profile_tables(results: Results) -> list[str]:
    """A table for each profile, the longest kernels first."""
    return [_table(profile) for profile in results.get("profiles", [])]


def _table(profile: Row) -> str:
    step, busy = profile["step_us"], profile["busy_us"]
    summary = (
        f"{profile['impl']}, {profile['case']}: a step takes {three_digits(step)} us, and the GPU is busy "
        f"for {three_digits(busy)} of them ({percent(busy / step)})."
    )
    kernels = sorted(profile["kernels"], key=lambda kernel: -kernel["us"])
    lines = [_line(code(k["name"], LONGEST_NAME), k["count"], k["us"], busy) for k in kernels[:TOP]]
    rest = kernels[TOP:]
    if rest:
        count, us = sum(k["count"] for k in rest), sum(k["us"] for k in rest)
        lines.append(_line(f"{len(rest)} others", count, us, busy))
    if not lines:
        return summary
    shown = table(["kernel", "calls", "us a step", "share of busy"], lines, texts=1)
    return f"{summary}\n\n{shown}"


def _line(name: str, count: float, us: float, busy: float) -> list[str]:
    return [name, f"{count:g}", three_digits(us), percent(us / busy if busy else None)]
