"""README results: a small table of the tutorial's step beside the package's own, and one picture."""

import textwrap
from collections.abc import Mapping, Sequence

from benchmarks.quality.runs import SUITE
from benchmarks.report import gpu, quality, steps
from benchmarks.report.markdown import milliseconds, table
from benchmarks.report.parts import Part
from benchmarks.report.plots import first_baseline
from benchmarks.report.results import Results, Row, case_and_precision, distinct

ON_A_CPU = ("dmm_fast", "dmm_fast, SequenceELBO")
ON_A_GPU = ("dmm_fast, graphed",)
WIDTH = 110


def highlights(results_of: Mapping[str, Results]) -> list[Part]:
    """Parts of the README: the suite ``cpu``, the newest run on a GPU, and the best trained models.

    Empty without any of them. A run in which a stage failed is shown with the sentence that says so.
    """
    shown: list[tuple[str, Results, list[Row], str]] = []
    cpu = results_of.get("cpu")
    if cpu:
        shown.append(("CPU", cpu, _beside_baseline(cpu["cases"], ON_A_CPU), ""))
    on_gpus = [results for suite, results in results_of.items() if suite.startswith("gpu")]
    if on_gpus:
        newest = max(on_gpus, key=lambda results: str(results["meta"]["date"]))
        shown.append(("GPU", newest, _beside_baseline(gpu.headline(newest), ON_A_GPU), gpu.not_ok(newest)))
    shown = [run for run in shown if run[2]]
    trained = quality.sentence(results_of[SUITE]) if SUITE in results_of else ""
    if not shown:
        return [_filled(trained)] if trained else []
    baselines = distinct(first_baseline(rows) for _, _, rows, _ in shown)
    titles = ["on", "case", "implementation", "median, ms", f"times faster than {' or '.join(baselines)}"]
    lines = [_line(on, row, str(first_baseline(rows))) for on, _, rows, _ in shown for row in rows]
    notes = [f"{on}: {_where(results)} {caution}".rstrip() for on, results, _, caution in shown]
    notes[-1] += " Ratios are taken round by round: their median, lowest and highest in brackets."
    text = "\n\n".join(map(_filled, filter(None, [*notes, trained])))
    return [table(titles, lines, texts=3), text, *([steps.picture(cpu)] if cpu else [])]


def _filled(note: str) -> str:
    return textwrap.fill(note, WIDTH, break_long_words=False)


def _beside_baseline(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Rows of these implementations and of the baseline; empty if one side is missing."""
    baseline = first_baseline(rows)
    if baseline is None or not any(row["impl"] in names for row in rows):
        return []
    return [row for row in rows if row["impl"] in (baseline, *names)]


def _line(on: str, row: Row, baseline: str) -> list[str]:
    faster = steps.times_faster(row, baseline)
    return [on, case_and_precision(row), row["impl"], milliseconds(row["median_ms"]), faster]


def _where(results: Results) -> str:
    meta = results["meta"]
    return (
        f"{meta['device']}, measured {meta['date'][:10]} at commit `{meta['commit']}` with torch "
        f"{meta['torch']}, {meta['threads']} of {meta['cpus']} CPU threads."
    )
