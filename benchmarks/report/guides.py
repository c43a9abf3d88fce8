"""Training with each guide and with flows: bounds and likelihoods, and step times on a GPU."""

from benchmarks.report.markdown import cell, milliseconds, table
from benchmarks.report.parts import Part
from benchmarks.report.results import Results, distinct, rows_of, where_and_with_what

# The suite of the steps timed on a GPU.
SUITE = "guides"


def overview_parts(results: Results) -> list[Part]:
    """A table with a row for each guide."""
    return [where_and_with_what(results, "against the reference in float64"), _table(results)]


def page_parts(results: Results) -> list[Part]:
    """The same parts as in the README."""
    return overview_parts(results)


def _table(results: Results) -> str:
    rows = results["cases"]
    titles = ["guide", "parameters", "valid bound", "test bound", "test NLL"]
    titles += ["test bound, mean of averages", "test NLL, mean of averages"]
    lines = []
    for row in rows:
        (bound, bound_mean), (nll, nll_mean) = row["test"]["bound"], row["test"]["nll"]
        numbers = (row["valid"]["bound"][0], bound, nll, bound_mean, nll_mean)
        written = [f"{number:.3f}" for number in numbers]
        lines.append([row["impl"], str(row["parameters"]), *written])
    trained = ", ".join(distinct(row["case"] for row in rows))
    legend = (
        f"{trained}, each from the same seed with the same schedule in one thread; the parameters of the "
        "lowest bound on the validation set, every 20 epochs. Nats a time step, over all steps unless said "
        f"otherwise; NLL by importance sampling with {rows[0]['particles']} draws. The suffix of a guide "
        "names the observations it reads: r the future, l the past, lr both; st is structured, mf mean-field."
    )
    return "\n\n".join([table(titles, lines, texts=1), legend])


# --- steps on a GPU -----------------------------------------------------------------------------------------


def guide_steps_table(results: Results) -> str:
    """A row for each guide whose steps were timed; empty if there are none."""
    rows = rows_of(results, SUITE)
    if not rows:
        return ""
    lines = [
        [cell(row["case"]), row["impl"], milliseconds(row["median_ms"]), milliseconds(row["min_ms"])]
        for row in rows
    ]
    return table(["step", "implementation", "median, ms", "fastest, ms"], lines, texts=2)


def guide_steps_sentence(results: Results) -> str:
    """The median step of each guide; empty if none was timed."""
    rows = rows_of(results, SUITE)
    if not rows:
        return ""
    medians = [f"{row['extra']['guide']} {milliseconds(row['median_ms'])}" for row in rows]
    return f"Milliseconds of a step with each guide, {rows[0]['impl']}: {'; '.join(medians)}."
