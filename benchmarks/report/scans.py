"""The scans on a GPU: microseconds per time step, and the floor of their exchanges."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.markdown import NOTHING, ratio, table, three_digits
from benchmarks.report.parts import Picture
from benchmarks.report.plots import Meta, colour, legend_below, log_scale, new_figure
from benchmarks.report.results import Results, distinct, rows_of

SUITE = "scans"
PASSES = ("forward", "backward", "forward and backward")
FLOOR, SWEEP = "exchange floor", "plan sweep of "
GRAPH = ", graph"
# Names of the implementations in plots.
MEANT = {
    "cuda": "dmm_fast, CUDA",
    "triton": "dmm_fast, Triton",
    "cpp": "dmm_fast, C++",
    "reference": "eager PyTorch",
}


class Timing(NamedTuple):
    """A timed row: ``impl`` without the suffix of a replay, ``us`` microseconds per time step."""

    op: str
    size: str
    done: str
    impl: str
    graph: bool
    us: float


Floors = Mapping[tuple[str, str, str], float]


def timings(results: Results) -> list[Timing]:
    """The rows of the scans themselves, without floors and plan sweeps."""
    found = []
    for row in rows_of(results, SUITE):
        op, _, rest = row["case"].partition(", ")
        size, _, done = rest.rpartition(", ")
        if done in PASSES:
            impl, graph = row["impl"].removesuffix(GRAPH), row["impl"].endswith(GRAPH)
            found.append(Timing(op, size, done, impl, graph, row["extra"]["us_per_step"]))
    return found


def floors_of_plans(results: Results) -> Floors:
    """The floors by scan, size and pass; the pass of both directions has one if each of them does."""
    floors = {}
    for row in rows_of(results, SUITE):
        case = row["case"]
        if case.startswith(f"{FLOOR} of "):
            scan, _, size = case.removeprefix(f"{FLOOR} of ").partition(", ")
            done = "backward" if scan.endswith("_backward") else "forward"
            floors[scan.removesuffix("_backward"), size, done] = row["extra"]["us_per_step"]
    for op, size, _ in list(floors):
        directions = [floors.get((op, size, done)) for done in ("forward", "backward")]
        known = [us for us in directions if us is not None]
        if len(known) == 2:
            floors[op, size, "forward and backward"] = sum(known)
    return floors


def scans_table(results: Results) -> str:
    """A row for each scan, size and implementation; empty if no scan was timed."""
    found, floors = timings(results), floors_of_plans(results)
    if not found:
        return ""
    titles = ["scan", "size", "implementation"]
    for done in PASSES:
        titles += [f"{done}, us", *["times the floor"] * bool(floors)]
    lines = []
    for op, size in distinct((t.op, t.size) for t in found):
        mine = [t for t in found if (t.op, t.size) == (op, size)]
        if any((op, size, done) in floors for done in PASSES):
            lines.append([f"`{op}`", size, f"*{FLOOR}*", *_floor_cells(op, size, floors)])
        for impl, graph in distinct((t.impl, t.graph) for t in mine):
            times = {t.done: t for t in mine if (t.impl, t.graph) == (impl, graph)}
            cells = [c for done in PASSES for c in _cells(times.get(done), floors)]
            lines.append([f"`{op}`", size, f"{impl}{GRAPH}" if graph else impl, *cells])
    return "\n\n".join([table(titles, lines, texts=3), _legend(bool(floors))])


def _cells(timing: Timing | None, floors: Floors) -> list[str]:
    if timing is None:
        return [NOTHING] * (1 + bool(floors))
    floor = floors.get(timing[:3])
    times = ratio(timing.us / floor) if floor and floor > 0 else NOTHING
    return [three_digits(timing.us), *[times] * bool(floors)]


def _floor_cells(op: str, size: str, floors: Floors) -> list[str]:
    each = [floors.get((op, size, done)) for done in PASSES]
    return [cell for us in each for cell in (NOTHING if us is None else three_digits(us), NOTHING)]


def _legend(with_floor: bool) -> str:
    text = (
        "Microseconds per time step: the median time of a scan divided by its steps. `reference` is eager "
        "PyTorch; `nn.RNN`, on a GPU cuDNN's, also projects its inputs; `graph`: replayed from a CUDA graph, "
        "which is not measured for a backward pass alone."
    )
    floor = " The floor is the time of the exchanges between the blocks of the plan alone."
    return text + floor * with_floor


def floors_table(results: Results) -> str:
    """Every exchange floor that was timed; empty if there are none."""
    rows = [row for row in rows_of(results, SUITE) if row["case"].startswith(FLOOR)]
    if not rows:
        return ""
    titles = ["floor", "stores", "clusters", "rows per cluster", "floats sent per block", "us per step"]
    lines = []
    for row in rows:
        extra = row["extra"]
        counts = [str(extra[key]) for key in ("clusters", "rows_a_cluster", "width")]
        lines.append([row["case"], row["impl"], *counts, three_digits(extra["us_per_step"])])
    return f"Exchanges alone:\n\n{table(titles, lines, texts=2)}"


def sweep_table(results: Results) -> str:
    """The scans under other plans than the chosen one, by estimated time; empty if there are none."""
    rows = [row for row in rows_of(results, SUITE) if row["case"].startswith(SWEEP)]
    if not rows:
        return ""
    lines = [
        [
            row["case"].removeprefix(SWEEP),
            row["impl"],
            f"{row['extra']['estimated_cycles']:.0f}",
            three_digits(row["extra"]["us_per_step"]),
        ]
        for row in rows
    ]
    shown = table(["scan", "plan", "estimated cycles per step", "us per step"], lines, texts=2)
    return f"The scans under the plans of the lowest estimated time:\n\n{shown}"


def scans_picture(results: Results) -> Picture | str:
    """The scans at the first size of the file, the tutorial's; empty if no scan was timed."""
    found = timings(results)
    if not found:
        return ""
    mine = [timing for timing in found if timing.size == found[0].size]
    draw = partial(scans_plot, mine, floors_of_plans(results), results["meta"])
    return Picture(
        f"{results['suite']}-scans.png", f"Microseconds per time step of the scans, {found[0].size}", draw
    )


def scans_plot(found: Sequence[Timing], floors: Floors, meta: Meta) -> Figure:
    """A row of panels for each scan, a panel for each pass: points, and the floor as a line."""
    scans = distinct(t.op for t in found)
    names = {op: distinct(t.impl for t in found if t.op == op) for op in scans}
    heights = [len(names[op]) + 1.2 for op in scans]
    figure = new_figure(12, 1.1 + 0.42 * sum(heights), meta)
    grid = figure.subplots(
        len(scans), 3, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for op, panels in zip(scans, grid, strict=True):
        for done, axes in zip(PASSES, panels, strict=True):
            mine = [t for t in found if (t.op, t.done) == (op, done)]
            _points(axes, mine, names[op], floors.get((op, found[0].size, done)))
            axes.set_title(f"{op}, {done}", fontsize=9, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel(f"us per time step, {found[0].size}", fontsize=9)
    legend_below(figure)
    return figure


def _points(axes: Axes, found: Sequence[Timing], names: Sequence[str], floor: float | None) -> None:
    """Points labelled with their times: launched eagerly above the line, replayed from a graph below it."""
    for timing in found:
        y, dark = names.index(timing.impl), colour(_meant(timing.impl))
        marker, face, above = ("D", "white", False) if timing.graph else ("o", dark, True)
        label = "from a CUDA graph" if timing.graph else "launched eagerly"
        axes.plot(timing.us, y, marker, color=dark, markerfacecolor=face, markersize=6, label=label)
        place = (0, 5 if above else -5)
        axes.annotate(
            three_digits(timing.us),
            (timing.us, y),
            place,
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=7.5,
        )
    if floor is not None and floor > 0:
        axes.axvline(floor, color="0.3", linestyle="--", linewidth=1, label="floor of the exchanges")
    log_scale(axes)
    axes.set_yticks(range(len(names)), map(_meant, names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=True, axis="y", color="0.92")


def _meant(impl: str) -> str:
    return MEANT.get(impl, impl)
