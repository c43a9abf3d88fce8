"""A run of ``dmm-fast train`` with the tutorial's settings: its time, and the likelihood of its model."""

from benchmarks.report.markdown import milliseconds, table, three_digits
from benchmarks.report.results import Results, Row, rows_of

SUITE = "training"
OVER_ALL, MEAN = "total_over_total", "mean_of_averages"


def training_table(results: Results) -> str:
    """A row for each run; empty if there are none."""
    rows = rows_of(results, SUITE)
    if not rows:
        return ""
    titles = ["data", "implementation", "epochs", "seconds", "ms an epoch", "test bound", "test NLL"]
    titles += ["test bound, mean of averages", "test NLL, mean of averages", "the tutorial's NLL"]
    lines = []
    for row in rows:
        extra, (bound, nll) = row["extra"], _test(row)
        times = [str(extra["epochs"]), three_digits(extra["seconds"]), milliseconds(row["median_ms"])]
        nats = [f"{figure[average]:.3f}" for average in (OVER_ALL, MEAN) for figure in (bound, nll)]
        lines.append([row["case"], row["impl"], *times, *nats, f"{extra['target']:g}"])
    particles = rows[0]["extra"]["particles"]
    legend = (
        "Seconds are those of the whole command, imports and compilation included. The parameters are those "
        "of the lowest bound on the validation set. Nats a time step, over all steps unless said otherwise; "
        f"NLL by importance sampling with {particles} draws."
    )
    return "\n\n".join([table(titles, lines, texts=2), legend])


def training_sentence(results: Results) -> str:
    """A sentence for each run; empty if there are none."""
    return " ".join(_sentence(row) for row in rows_of(results, SUITE))


def _sentence(row: Row) -> str:
    extra, (_, nll) = row["extra"], _test(row)
    return (
        f"`{row['impl']}` on {row['case']}: {extra['epochs']} epochs in {three_digits(extra['seconds'])} s, "
        f"test NLL {nll[OVER_ALL]:.3f} nats a time step; the tutorial reports {extra['target']:g}."
    )


def _test(row: Row) -> tuple[Row, Row]:
    """The bound and the NLL of the test set, each over all steps and as the mean of averages."""
    found = row["extra"]["test"]["splits"]["test"]
    return found["negative_elbo"], found["importance_nll"]
