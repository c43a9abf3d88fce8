"""The benchmark of gradient estimators: its figures, its check of the means, its file and table."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gradient_variance
from benchmarks.gradient_variance import Moments, compare, objectives
from benchmarks.report.gradient_variance import overview_parts
from benchmarks.report.pages import page_parts
from benchmarks.report.results import newest_per_suite
from dmm_fast.training import train
from dmm_fast.training._folder import LAST
from tests.helpers_model import landed, make_batch
from tests.helpers_train import tiny


def test_moments_are_those_of_the_draws() -> None:
    draws = 1e4 + torch.randn(50, 3, dtype=torch.float64)
    moments = Moments()
    for draw in draws:
        moments.add(draw)
    torch.testing.assert_close(moments.mean, draws.mean(0))
    assert moments.variance == pytest.approx(float(draws.var(0).sum()), rel=1e-9)
    expected = float(draws.mean(0).norm()) / (float(draws.var(0).sum()) / 50) ** 0.5
    assert moments.standard_errors == pytest.approx(expected, rel=1e-9)


def test_where_the_guide_is_exact_only_the_total_gradients_vary() -> None:
    dmm, batch = landed(), make_batch((3, 2), dtype=torch.float64)
    for objective in objectives(3):
        rows = {row["network"]: row for row in compare(dmm, batch, objective, 40)}
        assert {*rows} == {"emitter", "trans", "combiner", "rnn", "z_0", "z_q_0", "h_0"}
        total, other = rows["combiner"]["variances"]
        assert total > 1
        assert other < 1e-20
        assert rows["combiner"]["standard_errors"] < gradient_variance.BOUND
        # The model's own gradients are the same, and their difference is rounding.
        assert rows["trans"]["standard_errors"] is None


def test_a_biased_estimator_is_found() -> None:
    """The path gradient is not that of the importance-weighted bound."""
    objective = objectives(3)[1]
    biased = objective._replace(
        steps=(objective.steps[0], lambda dmm: gradient_variance.ImportanceELBO(3, "path"))
    )
    dmm, batch = landed(), make_batch((3, 2) * 20, dtype=torch.float64)
    torch.nn.init.constant_(dmm.combiner.lin_hidden_to_loc.bias, 1.0)
    errors = [
        {row["network"]: row["standard_errors"] for row in compare(dmm, batch, each, 60)}["combiner"]
        for each in (objective, biased)
    ]
    assert errors[0] < gradient_variance.BOUND < errors[1]


def test_a_file_and_a_table_are_written(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", num_epochs=1, num_sequences=12))
    given = ["--draws", "8", "--particles", "2", "--rows", "4", "--out", str(tmp_path / "out")]
    assert gradient_variance.main([str(tmp_path / "run" / LAST), *given]) == 0
    (path,) = (tmp_path / "out").iterdir()
    results = json.loads(path.read_text())
    assert {row["case"] for row in results["cases"]} == {"chorales, bernoulli, st-r, epoch 1"}
    assert {(row["objective"], row["impl"]) for row in results["cases"]} == {
        ("ELBO", "path"),
        ("IWAE, 2 draws", "dreg"),
    }
    assert newest_per_suite(tmp_path / "out")["gradient-variance"][1] == results
    text = "\n".join(map(str, page_parts(results)))
    assert text == "\n".join(map(str, overview_parts(results)))
    combiner = next(row for row in results["cases"] if row["network"] == "combiner")
    assert f"| {combiner['variances'][0]:.3g} | {combiner['variances'][1]:.3g} |" in text


@pytest.mark.parametrize("option", ["--particles", "--rows", "--threads", "--draws"])
@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_other_numbers_are_refused(capsys: pytest.CaptureFixture[str], option: str, number: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        gradient_variance.main(["x", option, number])
    lowest = 2 if option == "--draws" else 1
    error = capsys.readouterr().err
    assert f"argument {option}: expected a whole number from {lowest}, got {number!r}" in error
