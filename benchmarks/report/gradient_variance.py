"""Variances of gradient estimators at trained models, network by network."""

from benchmarks.report.markdown import NOTHING, cell, ratio, table
from benchmarks.report.parts import Part
from benchmarks.report.results import Results, where_and_with_what


def overview_parts(results: Results) -> list[Part]:
    """A table with a row for each model, objective and network."""
    return [where_and_with_what(results, "that two estimators have the same mean"), _table(results)]


def page_parts(results: Results) -> list[Part]:
    """The same parts as on the results page."""
    return overview_parts(results)


def _table(results: Results) -> str:
    titles = ["model", "objective", "gradient of", "estimator", "variance, total", "variance"]
    titles += ["times smaller", "means differ by, s.e."]
    lines = []
    for row in results["cases"]:
        total, other = row["variances"]
        same = row["standard_errors"] is None
        numbers = [f"{total:.3g}"]
        numbers += [NOTHING] * 3 if same else [f"{other:.3g}", _times(total, other)]
        numbers += [] if same else [f"{row['standard_errors']:.2f}"]
        lines.append([cell(row["case"]), row["objective"], row["network"], row["impl"], *numbers])
    first = results["cases"][0]
    legend = (
        f"Gradients of the loss of {first['rows']} sequences, with {first['draws']} draws of the latents, "
        "the same for both estimators. The variance is the trace of the covariance. The difference of the "
        "means is given in standard errors, about 1 if there is none. A dash: the two gradients are the same."
    )
    return "\n\n".join([table(titles, lines, texts=4), legend])


def _times(total: float, other: float) -> str:
    return ratio(total / other) if other > 0 else NOTHING
