"""User data on the command line: every kind of file and model, and failed starts."""

import json
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pandas as pd
import pytest

from dmm_fast import training
from dmm_fast.cli import main
from dmm_fast.training._folder import LAST

SIZES = ["--z-dim", "3", "--emission-dim", "4", "--transition-dim", "5", "--rnn-dim", "6"]
TINY = ["train", *SIZES, "-n", "1", "-ae", "1", "--no-tensorboard"]
TABLE = ["--id-column", "who", "--time-column", "t"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with gaps and covariates, one with controls, an array, a set of arrays, and music."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    who, t = (each.ravel() for each in np.meshgrid(np.arange(9), np.arange(6), indexing="ij"))
    frame = pd.DataFrame({"who": who, "t": t, "x": rng.normal(5, 3, 54), "n": rng.poisson(3, 54)})
    frame.assign(age=who % 3).drop(index=[3, 20]).to_csv(folder / "gaps.csv", index=False)
    frame.assign(dose=rng.normal(size=54)).to_parquet(folder / "dosed.parquet")
    days = pd.Timestamp("2024-02-27") + pd.to_timedelta(frame["t"], "D")
    frame.assign(t=days).to_csv(folder / "dated.csv", index=False)
    np.save(folder / "binary.npy", rng.integers(0, 2, (9, 5, 4)))
    np.savez(folder / "own.npz", sequences=rng.normal(size=(9, 5, 2)), controls=rng.normal(size=(9, 5, 1)))
    np.savez(folder / "objects.npz", sequences=np.array([None]))
    (folder / "short.csv").write_text("x\n0\n1\n")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    (folder / "empty").mkdir()
    (folder / "music").mkdir()
    for i in range(3):
        track = [mido.Message("note_on", note=60 + i), mido.Message("note_off", note=60 + i, time=960)]
        mido.MidiFile(tracks=[mido.MidiTrack(track)]).save(folder / "music" / f"{i}.mid")
    return folder


RUNS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "gaps": ("gaps.csv", [*TABLE, "--columns", "x, n", "--static-columns", "age", "--emission", "gaussian",
             "--mask-input", "--augment", "transition"],
             {"input_dim": 2, "static_dim": 1, "mask_input": True, "augment": "transition"}),
    "controls": ("dosed.parquet", [*TABLE, "--columns", "x", "--control-columns", "dose", "--emission",
                 "gaussian"], {"input_dim": 1, "control_dim": 1, "emission": "gaussian"}),
    "dates": ("dated.csv", [*TABLE, "--freq", "D", "--emission", "gaussian"], {"input_dim": 2}),
    "nade": ("binary.npy", ["--emission", "nade", "--nade-dim", "3"], {"emission": "nade", "nade_dim": 3}),
    "counts": ("dosed.parquet", [*TABLE, "--columns", "n", "--control-columns", "dose", "--emission",
               "negative_binomial", "--augment", "both"], {"input_dim": 1, "emission": "negative_binomial"}),
    "arrays": ("own.npz", ["--emission", "gaussian", "--split-seed", "1"], {"control_dim": 1}),
    "music": ("music", [], {"input_dim": 88}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_trained_resumed_and_evaluated(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, flags, sizes = RUNS[name]
    out = tmp_path / "run"
    assert main([*TINY, "--data", str(files / file), *flags, "--out", str(out), "-l", ""]) == 0
    saved = training.load_checkpoint(out / LAST)
    assert {key: saved.sizes[key] for key in sizes} == sizes
    assert main(["train", "--resume", "--out", str(out), "-n", "2", "-l", "", "--no-tensorboard"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--split", "test", "--num-particles", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert np.isfinite(figures["importance_nll"]["total_over_total"])
    if name == "nade":
        drawn = ["generate", str(out), "--out", str(tmp_path / "drawn"), "-n", "1", "--prefix-steps", "3"]
        assert main([*drawn, "--num-steps", "4"]) == 0
        assert {"reconstruction_1.png", "forecast_1.mid"} <= {p.name for p in (tmp_path / "drawn").iterdir()}
    if name in ("gaps", "controls"):
        assert main(["generate", str(out), "--out", str(tmp_path / "drawn")]) == 2
        assert "checkpoint: expected a model" in capsys.readouterr().err
        assert not (tmp_path / "drawn").exists()
    if name == "controls":
        assert main(["evaluate", str(out), "--data", str(files / "binary.npy")]) == 2
        assert "--data: expected 1 features, as" in capsys.readouterr().err


FAILED: list[tuple[str, list[str], str]] = [
    ("gaps.csv", [*TABLE, "--columns", "n"], "(emission='poisson' or 'negative_binomial' is for such data)"),
    ("gaps.csv", [*TABLE, "--columns", "x"], "(emission='gaussian' is for such data)"),
    ("gaps.csv", ["--id-column", "whom"], "gaps.csv: frame: expected a column 'whom'"),
    ("gaps.csv", [*TABLE, "--columns", "x", "--control-columns", "n", "--emission", "gaussian"],
     "gaps.csv: time: expected no gaps, since there are controls in sequence"),
    ("gaps.csv", [*TABLE, "--columns", "x", "--static-columns", "n"], "static: expected one value of column"),
    ("dated.csv", TABLE, "dated.csv: time: expected whole numbers of time steps, or dates and freq"),
    ("dated.csv", [*TABLE, "--freq", "x"], "freq: expected the length of a time step"),
    ("short.csv", [], "short.csv: expected a data set as .csv, got ValueError: data: expected at least 3"),
    ("broken.parquet", [], "broken.parquet: expected a table as .parquet"),
    ("objects.npz", [], "objects.npz: expected a data set as .npz"),
    ("binary.npy", ["--columns", "x"], "columns: expected None unless path is a table"),
    ("binary.npy", ["--mask-input", "--nade-dim", "0"], "nade_dim: expected at least 1, got 0"),
    ("binary.npy", ["--standardize"], "standardize: expected emission gaussian with it, got bernoulli"),
    ("binary.npy", ["--num-sequences", "3"], "num_sequences: expected None with a data file"),
    ("binary.npy", ["--num-iafs", "1", "--iaf-dim", "2"], "iaf_dim: expected at least z_dim = 3"),
    ("binary.npy", ["--load-model", "none"], "none"),
    ("binary.npy", ["--augment", "x"], "--augment: invalid choice: 'x'"),
    ("own.npz", [], "(emission='gaussian' is for such data)"),
    ("empty", [], "path: expected a folder with files ending in .mid or .midi"),
    ("binary.npy", ["--emission", "categorical"], "data, train: expected 0 or 1, and one 1 a step"),
    ("music", ["--emission", "cauchy"], "--emission: invalid choice: 'cauchy'"),
    ("none.csv", [], "none.csv"),
    ("chorales", ["--freq", "D"], "freq: expected None with the built-in chorales, got D"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "flags", "message"), FAILED)
def test_a_failed_start_reports_why_and_leaves_no_files(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, flags: list[str], message: str
) -> None:
    data = file if file == "chorales" else str(files / file)
    try:
        code: object = main([*TINY, "--data", data, "--out", str(tmp_path / "runs" / "run"), *flags])
    except SystemExit as end:  # argparse's way
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_columns(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(files / "gaps.csv"), *TABLE, "--columns", "x", "--emission", "gaussian", "-l", ""]
    assert main([*TINY, *flags, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(tmp_path), "--columns", "n"]) == 2
    assert "columns: expected 'x', as in" in capsys.readouterr().err
