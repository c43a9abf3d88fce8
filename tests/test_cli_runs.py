"""The command line around a run: help, tables, early errors, a closed terminal."""

import argparse
import json
import os
import pty
import re
import signal
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch

from dmm_fast import training
from dmm_fast._arguments import AUGMENT, INFERENCE, NETWORKS
from dmm_fast._heads import HEADS
from dmm_fast.cli import build_parser, main
from dmm_fast.data import Dataset, SequenceSet, chorales, load, save_npz
from dmm_fast.training import TrainConfig, read_metrics
from dmm_fast.training._folder import BEST, LAST
from dmm_fast.training._runlog import METRICS
from tests.helpers_train import stop_at

SIZES = ["--z-dim", "3", "--emission-dim", "4", "--transition-dim", "5", "--rnn-dim", "6"]
TINY = ["train", *SIZES, "-mbs", "4", "-ae", "1", "--eval-frequency", "1", "--no-tensorboard"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_npz(chorales(8, 3, 3, num_steps=(8, 12)), path)
    return str(path)


@pytest.fixture(scope="module")
def real_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "real.npz"
    torch.manual_seed(3)
    split = SequenceSet(torch.randn(8, 10, 3) * 4 + 7, torch.full((8,), 10))
    save_npz(Dataset("real", split, split, split), path)
    return str(path)


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["generate"], ["info"], ["download"]])
def test_help_shows_useful_defaults(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    defaults = re.findall(r"\(default: (.*?)\)", shown)
    assert not {"None", "", "True", "False", "==SUPPRESS=="} & set(defaults)
    expected = {"train": "5000", "evaluate": "100", "generate": "64", "download": "."}
    assert all(expected[name] in defaults for name in command if name in expected)


def test_evaluate_explains_its_figures(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--data", data_file, "-n", "1", "--out", str(tmp_path), "-l", ""]) == 0
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path), "--split", "test", "--num-particles", "7"]
    assert main([*arguments, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert main(arguments) == 0
    title, heads, row, *meaning = capsys.readouterr().out.splitlines()
    assert "nats per time step" in title
    assert re.split(r"\s{2,}", heads.strip()) == ["(a) bound", "(b) NLL", "(c) bound", "(c) NLL"]
    bound, nll = measured["negative_elbo"], measured["importance_nll"]
    figures = [each[name] for name in ("total_over_total", "mean_of_averages") for each in (bound, nll)]
    assert row.split() == ["test", *(f"{figure:.4f}" for figure in figures)]
    assert [line[:3] for line in meaning] == ["(a)", "(b)", "(c)"]
    assert "importance sampling (7 particles)" in meaning[1]
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    helped = capsys.readouterr().out.splitlines()
    assert {meaning[0], meaning[2]} <= set(helped)


def test_every_command_accepts_a_run_without_epochs(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flags = tmp_path / "run", ["--no-tensorboard", "-l", ""]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, lambda: signal.raise_signal(signal.SIGHUP))
        assert main([*TINY, "--data", data_file, "--out", str(out), "-n", "2", "-l", ""]) == 130
    assert "SIGHUP after 0 epochs and 1 steps" in capsys.readouterr().err
    assert not (out / BEST).exists()
    assert main(["evaluate", str(out), "--split", "test", "--num-particles", "2"]) == 0
    (out / METRICS).touch()
    capsys.readouterr()
    assert main(["generate", str(out), "--out", str(tmp_path / "g"), "-n", "1", "--prefix-steps", "5"]) == 0
    said = capsys.readouterr()
    assert said.err == f"dmm-fast: no training curve: {out / METRICS} has no epoch yet\n"
    assert "sample_1.png" in said.out
    assert "training.png" not in said.out
    assert main(["train", "--resume", "--out", str(out), *flags]) == 0
    assert [line["epoch"] for line in read_metrics(out / METRICS)] == [0, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-smod", "none/m"], "save_model: expected a folder in which to write m, got none: No such file"),
        (["-l", "none/log"], "--log: expected a folder in which to write log, got none: No such file"),
        (["-l", "/dev/full"], "No space left on device: '/dev/full'"),
        (
            ["--out", "run", "-l", "a/log"],
            "--log: expected a folder in which to write log, got run/a: No",
        ),
        (["--seed", "-1"], "--seed: expected a whole number from 0 to 2**32 - 1, got '-1'"),
        (["--standardize"], "standardize: expected emission gaussian with it, got bernoulli"),
        (["--tmc", "--elbo", "mean_field"], "--tmc: expected one objective, got --elbo mean_field beside it"),
        (["--tmc", "--tmcelbo"], "--tmc: expected one objective, got --tmcelbo beside it"),
        (
            ["--emission", "gaussian", "--standardize", "-lmod", "m"],
            "standardize: expected None with load_model, which has units or has none, got True",
        ),
    ],
)
def test_unwritable_outputs_are_reported_before_training(
    tmp_path: Path,
    data_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main([*TINY, "--data", data_file, "-n", "1", *flags])
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_real_values_are_refused_with_a_remedy(
    tmp_path: Path, real_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([*TINY, "--data", real_file, "-n", "1", "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert len(error) < 200
        assert re.search(r"data, train: expected 0 or 1 .*, got \S+ at .*\(emission='gaussian' is", error)
        assert list(tmp_path.iterdir()) == []


def test_a_damaged_best_checkpoint_is_named_and_the_last_suggested(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--data", data_file, "-n", "1", "--out", str(tmp_path), "-l", ""]) == 0
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:-1])
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--num-particles", "1"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / BEST}: expected a whole safetensors file" in error
    assert f"{LAST} beside it is intact and has 1 epochs: to use it, give {tmp_path / LAST} itself" in error
    assert main(["evaluate", str(tmp_path / LAST), "--num-particles", "1"]) == 0


def test_a_closed_terminal_saves_the_state(tmp_path: Path, data_file: str) -> None:
    out = tmp_path / "run"
    command = [*TINY, "--data", data_file, "--out", str(out), "-cf", "1000"]
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            with open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
                code = main(command)
        finally:
            os._exit(code)
    shown = b""
    while b"[training epoch 0002]" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert training.load_checkpoint(out / LAST).epoch >= 2
    assert not (out / ".lock").exists()


def test_the_flags_of_the_model_name_all_there_are() -> None:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    actions = {action.dest: action for action in commands.choices["train"]._actions}
    for name, known in (("inference", INFERENCE), ("rnn", NETWORKS), ("emission", tuple(HEADS))):
        assert sorted(actions[name].choices) == sorted(known)
        assert actions[name].default == getattr(TrainConfig(), name) == known[0]
    assert actions["augment"].choices == AUGMENT


@pytest.mark.parametrize(("inference", "rnn"), list(zip(INFERENCE, cycle(NETWORKS))))
def test_every_command_accepts_every_guide(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str], inference: str, rnn: str
) -> None:
    out, flags = tmp_path / "run", ["--inference", inference, "--rnn", rnn, "-l", ""]
    assert main([*TINY, *flags, "--data", data_file, "--out", str(out), "-n", "1"]) == 0
    # A resumed run has the guide of the run.
    resume = ["train", "--resume", "--out", str(out), "-n", "2", "-l", "", "--no-tensorboard"]
    assert main(resume) == 0
    assert [line["epoch"] for line in read_metrics(out / METRICS)] == [0, 1]
    assert training.load_checkpoint(out / LAST).config["inference"] == inference
    capsys.readouterr()
    other = INFERENCE[INFERENCE.index(inference) - 1]
    assert main([*resume, "--inference", other]) == 2
    assert f"inference: expected '{inference}', as in" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--split", "test", "--num-particles", "5", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert 55 < measured["importance_nll"]["total_over_total"] < 75
    if inference not in ("st-lr", "mf-l"):
        return  # pictures take a second
    drawn = ["generate", str(out), "--out", str(tmp_path / "g"), "-n", "1", "--prefix-steps", "5"]
    assert main([*drawn, "--num-steps", "4"]) == 0
    assert (tmp_path / "g" / "forecast_1.mid").exists()


def test_info_names_the_guides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["inference"], facts["rnn"]) == (", ".join(INFERENCE), ", ".join(NETWORKS))


def test_a_model_of_another_guide_is_refused(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = [*TINY, "--data", data_file, "-n", "1", "-l", ""]
    model = str(tmp_path / "m")
    assert main([*start, "--inference", "mf-l", "-smod", model]) == 0
    for flags in (["--inference", "st-l"], ["--inference", "mf-lr"], ["--inference", "mf-l", "--rnn", "gru"]):
        capsys.readouterr()
        assert main([*start, *flags, "-lmod", model]) == 2
        assert f"{model}: expected" in capsys.readouterr().err


def test_real_values_are_trained_in_their_own_units(
    tmp_path: Path, real_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", real_file, "--emission", "gaussian", "-n", "3", "-l", ""]
    for name, more in (("yes", ["--min-scale", "0.1"]), ("no", ["--no-standardize"])):
        assert main([*TINY, *flags, *more, "--out", str(tmp_path / name)]) == 0
    yes, no = (training.load_dmm(tmp_path / name / LAST) for name in ("yes", "no"))
    data = load(real_file).train.sequences
    assert torch.allclose(yes.x_loc, data.mean((0, 1)), rtol=1e-4)
    assert (yes.min_scale, no.min_scale, no.x_loc) == (0.1, 0.0, None)
    losses = [read_metrics(tmp_path / name / METRICS)[0]["train"] for name in ("yes", "no")]
    # Three features of standard deviation 4 around 7: about 8.4 nats per step at best.
    assert 8 < losses[0] < 12 < losses[1]
    # The run can be resumed and evaluated; commands for piano rolls are refused.
    resume = ["train", "--resume", "--out", str(tmp_path / "yes"), "-n", "4", "-l", "", "--no-tensorboard"]
    assert main(resume) == 0
    assert (
        main([*TINY, *flags[:4], "--min-scale", "0.1", "-n", "4", "-l", "", "--out", str(tmp_path / "x")])
        == 0
    )
    assert (tmp_path / "x" / LAST).read_bytes() == (tmp_path / "yes" / LAST).read_bytes()
    assert main(["evaluate", str(tmp_path / "yes"), "--num-particles", "2"]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "yes"), "--out", str(tmp_path / "g")]) == 2
    assert "checkpoint: expected a model of piano rolls" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
    assert main([*resume, "--no-standardize"]) == 2
    assert "standardize: expected True, as in" in capsys.readouterr().err
