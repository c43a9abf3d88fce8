"""Presets trained on data sets, beside the literature's figures; and their learning curves."""

import json
import statistics
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.evaluation import BOUND, NLL
from benchmarks.quality.journal import FINISHED
from benchmarks.quality.runs import SUITE
from benchmarks.report.literature import EXACT, FIGURES, SETS, model_of, place_of, published
from benchmarks.report.markdown import NOTHING, cell, table, three_digits
from benchmarks.report.parts import Part, Picture
from benchmarks.report.plots import LINES, legend_below, new_figure
from benchmarks.report.results import ReportError, Results, Row, distinct

OVER_ALL, MEAN = "total_over_total", "mean_of_averages"
# Height of a panel above the lowest bound of its worst run, as a share of it: the first evaluations are far
# off.
HEADROOM = 0.15
# Settings that do not distinguish runs: when they were evaluated and saved.
INTERVALS = ("eval_frequency", "checkpoint_freq")
NEEDED = (
    "name",
    "data",
    "fingerprint",
    "preset",
    "seed",
    "settings",
    "meta",
    "ended",
    "best",
    BOUND,
    NLL,
    "curve",
)


def quality_results(folder: Path, suite: str = SUITE) -> dict[str, tuple[Path, Results]]:
    """The results of all runs in ``folder`` by the name of their suite; empty if there are none.

    Raises:
        ReportError: a file is not one of :mod:`benchmarks.quality`.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return {}
    texts = [path.read_text(encoding="utf-8") for path in paths]
    runs = [_run(path, text) for path, text in zip(paths, texts, strict=True)]
    crc = zlib.crc32("".join(texts).encode())
    # The newest commit and device title the pictures; each row has its own machine.
    newest = max(runs, key=lambda run: str(run["meta"]["date"]))["meta"]
    source = f"{folder.name}, {len(runs)} files, CRC-32 {crc:08x}"
    return {suite: (folder, {"suite": suite, "meta": newest, "source": source, "runs": runs})}


def overview_parts(results: Results) -> list[Part]:
    """The table beside the literature, and the learning curves."""
    return [_table(results), _legend(results), _picture(results)]


def page_parts(results: Results) -> list[Part]:
    """The same parts, and a table with a row for each run."""
    return [*overview_parts(results), _runs_table(results)]


def sentence(results: Results) -> str:
    """A sentence with the figures of each data set's best preset, by the validation bound; or empty.

    Only runs that ended by themselves count.
    """
    shown = []
    for mine in by(results["runs"], lambda run: run["data"]):
        finished = [run for run in mine if run["ended"] in FINISHED and run[NLL]["test"] is not None]
        if not finished:
            continue
        best = min(_groups(finished), key=lambda runs: statistics.mean(run["best"]["valid"] for run in runs))
        of = published(best[0]["data"], model_of(best[0]["settings"]))
        beside = "" if of is None else f", published {_pair(of.nll, of.bound)}"
        nll, bound = (statistics.mean(_figures(best, what, MEAN)) for what in (NLL, BOUND))
        shown.append(f"{best[0]['data']} {_pair(nll, bound)} with `{best[0]['preset']}`{beside}")
    if not shown:
        return ""
    return f"Test NLL (bound), nats a time step, mean of averages: {'; '.join(shown)}."


# --- tables ---------------------------------------------------------------------------------------------


def _table(results: Results) -> str:
    titles = ["data", "preset", "model in the literature", "ended by", "machine"]
    titles += ["seeds", "test bound", "test NLL", "published bound", "published NLL"]
    titles += ["bound over all steps", "NLL over all steps", "epochs", "hours"]
    lines = []
    for mine in by(results["runs"], lambda run: run["data"]):
        lines += [_line(runs) for runs in _groups(mine)]
        exact = published(mine[0]["data"], EXACT)
        if exact is not None:
            texts = [cell(mine[0]["data"]), NOTHING, EXACT, NOTHING, NOTHING]
            lines.append([*texts, *[NOTHING] * 4, f"{exact.nll:.2f}", *[NOTHING] * 4])
    return table(titles, lines, texts=5)


def _line(runs: Sequence[Row]) -> list[str]:
    first = runs[0]
    model = model_of(first["settings"])
    of = published(first["data"], model)
    texts = [cell(first["data"]), _preset(first), model or NOTHING, _listed(run["ended"] for run in runs)]
    machines = _listed(_machine(machine) for run in runs for machine in run["machines"])
    numbers = [spread(_figures(runs, what, MEAN), 3) for what in (BOUND, NLL)]
    numbers += [NOTHING, NOTHING] if of is None else [_nats(of.bound), _nats(of.nll)]
    numbers += [spread(_figures(runs, what, OVER_ALL), 3) for what in (BOUND, NLL)]
    numbers += [
        spread([run["epochs"] for run in runs], 0),
        spread([run["seconds"] / 3600 for run in runs], 2),
    ]
    return [*texts, machines, ", ".join(str(run["seed"]) for run in runs), *numbers]


def _machine(machine: Row) -> str:
    threads = machine["threads"]
    return f"{machine['device']}, {threads} {'thread' if threads == 1 else 'threads'}"


def _runs_table(results: Results) -> str:
    titles = ["run", "ended by", "parameters", "updates", "best after epoch", "best after hours"]
    titles += ["valid bound", "test bound", "test NLL"]
    lines = []
    for run in results["runs"]:
        best = run["best"]
        line = [f"`{run['name']}`", cell(run["ended"]), str(run["parameters"]), str(run["updates"])]
        line += [str(best["epochs"]), three_digits(best["seconds"] / 3600)]
        figures = (run[BOUND]["valid"], run[BOUND]["test"], run[NLL]["test"])
        lines.append([*line, *[_nats(figure and figure[MEAN]) for figure in figures]])
    return table(titles, lines, texts=2)


def _legend(results: Results) -> str:
    runs = results["runs"]
    draws = {what: _listed(str(run[what]["draws"]) for run in runs) for what in (BOUND, NLL)}
    commits = _listed(f"`{run['meta']['commit']}`" for run in runs)
    return (
        "Test set, nats a time step, lower is better; the mean of the sequences' averages, as published, "
        f"unless said otherwise. Bound: the negative ELBO, {draws[BOUND]} draws; NLL by importance sampling, "
        f"{draws[NLL]} draws. The parameters are those of the lowest bound on the validation set. With "
        "several seeds: the mean, with the lowest and highest in brackets. Hours are wall time of training, "
        "with its evaluations and checkpoints. A run ended by its time budget had not finished. Published: "
        f"arXiv 1609.09869, tables 3 and 4. Commits: {commits}."
    )


# --- learning curves ------------------------------------------------------------------------------------


def _picture(results: Results) -> Picture | str:
    runs = [run for run in results["runs"] if run["curve"]]
    if not runs:
        return ""
    shows = f"Test bound over hours of training, suite {SUITE}"
    return Picture(f"{SUITE}.png", shows, partial(curves_plot, runs, results["meta"]))


def curves_plot(runs: Sequence[Row], meta: Row) -> Figure:
    """A panel for each data set: the test bound of each run over hours, the published ones dashed."""
    sets = list(by(runs, lambda run: run["data"]))
    figure = new_figure(8, 0.8 + 3.6 * len(sets), meta)
    grid = figure.subplots(len(sets), 1, squeeze=False)[:, 0]
    labels = _labels(runs)
    names = distinct(labels.values())
    colours = {name: LINES[names.index(label) % len(LINES)] for name, label in labels.items()}
    for mine, axes in zip(sets, grid, strict=True):
        _panel(axes, mine, labels, colours)
    grid[-1].set_xlabel("hours of training")
    legend_below(figure)
    return figure


def _labels(runs: Sequence[Row]) -> dict[str, str]:
    """A label for each run by its name: its preset, with its other settings if a set has several of them."""
    kinds = {(run["data"], run["preset"], _preset(run)) for run in runs}
    pairs = [(data, preset) for data, preset, _ in kinds]
    several = {preset for data, preset in pairs if pairs.count((data, preset)) > 1}
    return {
        run["name"]: _preset(run).strip("`") if run["preset"] in several else run["preset"] for run in runs
    }


def _panel(axes: Axes, runs: Sequence[Row], labels: dict[str, str], colours: dict[str, str]) -> None:
    # Runs of older versions have only the average over all steps.
    name = "test_mean" if all("test_mean" in point for run in runs for point in run["curve"]) else "test"
    lowest = []
    for run in runs:
        colour, points = colours[run["name"]], run["curve"]
        hours, bounds = [p["seconds"] / 3600 for p in points], [p[name] for p in points]
        marker = "." if len(points) < 20 else ""
        axes.plot(hours, bounds, color=colour, linewidth=1.4, marker=marker, label=labels[run["name"]])
        lowest.append(min(bounds))
        of = published(run["data"], model := model_of(run["settings"]))
        # The published bounds are means of averages.
        if of is not None and of.bound is not None and name == "test_mean":
            label = f"{model}, published"
            axes.axhline(of.bound, color=colour, linestyle="--", linewidth=1, label=label)
            lowest.append(of.bound)
    bottom, top = min(lowest), max(lowest) + HEADROOM * abs(max(lowest))
    axes.set_ylim(bottom - 0.05 * (top - bottom), top)
    average = "mean of averages" if name == "test_mean" else "over all steps"
    axes.set_ylabel(f"test bound, nats a time step,\n{average}")
    axes.set_title(runs[0]["data"], loc="left", fontsize=10)
    axes.grid(visible=True, color="0.92")


# --- runs -----------------------------------------------------------------------------------------------


def _run(path: Path, text: str) -> Row:
    try:
        run = json.loads(text)
    except ValueError:
        run = None
    if not isinstance(run, dict) or run.get("suite") != SUITE or any(name not in run for name in NEEDED):
        raise ReportError(
            f"{path.name}: expected the results of a run of benchmarks.quality, got another file"
        )
    return run


def by(runs: Sequence[Row], key: Callable[[Row], Any]) -> Iterator[list[Row]]:
    """Runs with the same ``key``: the sets of the literature in its order, then others by name."""
    last = len(SETS)
    for value in distinct(map(key, sorted(runs, key=lambda run: (_place(run, last), run["data"])))):
        yield [run for run in runs if key(run) == value]


def _place(run: Row, last: int) -> int:
    place = place_of(run["data"])
    return last if place is None else place


def _groups(runs: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ in their seeds alone, in the order of the literature's models, then by preset."""
    groups: dict[str, list[Row]] = {}
    for run in runs:
        settings = {
            name: value for name, value in run["settings"].items() if name not in ("seed", *INTERVALS)
        }
        key = json.dumps([run["fingerprint"], run["preset"], settings], sort_keys=True)
        groups.setdefault(key, []).append(run)
    models = [*FIGURES, None]
    return sorted(
        groups.values(), key=lambda mine: (models.index(model_of(mine[0]["settings"])), _preset(mine[0]))
    )


def intervals_left_out(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given in place of the preset's, but for :data:`INTERVALS`."""
    return {name: value for name, value in overrides.items() if name not in INTERVALS}


def _preset(run: Row) -> str:
    changed = [f"{name}={value}" for name, value in intervals_left_out(run["overrides"]).items()]
    return f"`{', '.join([run['preset'], *changed])}`"


def _figures(runs: Sequence[Row], what: str, average: str) -> list[float]:
    return [run[what]["test"][average] for run in runs if run[what]["test"] is not None]


def spread(values: Sequence[float], digits: int) -> str:
    """The mean, of several values with the lowest and the highest."""
    if not values:
        return NOTHING
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _nats(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _pair(nll: float, bound: float | None) -> str:
    return _nats(nll) if bound is None else f"{_nats(nll)} ({_nats(bound)})"


def _listed(texts: Iterator[str]) -> str:
    return cell("; ".join(distinct(texts))) or NOTHING
