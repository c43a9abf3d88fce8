"""The command line: the flags of the example, every subcommand end to end, and one-line errors."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import mido
import pytest
import torch
from safetensors.torch import load_file

import dmm_fast
from dmm_fast import DMM, training
from dmm_fast._commands import train_config
from dmm_fast.cli import build_parser, main
from dmm_fast.data import chorales, save_npz
from dmm_fast.training import TrainConfig, read_metrics
from dmm_fast.training._folder import BEST, LAST

# name, short name, default, and a value to give: from the parser of Pyro's examples/dmm.py.
EXAMPLE_FLAGS: list[tuple[str, str | None, Any, str | None]] = [
    ("--num-epochs", "-n", 5000, "7"),
    ("--learning-rate", "-lr", 0.0003, "0.5"),
    ("--beta1", "-b1", 0.96, "0.5"),
    ("--beta2", "-b2", 0.999, "0.5"),
    ("--clip-norm", "-cn", 10.0, "0.5"),
    ("--lr-decay", "-lrd", 0.99996, "0.5"),
    ("--weight-decay", "-wd", 2.0, "0.5"),
    ("--mini-batch-size", "-mbs", 20, "7"),
    ("--annealing-epochs", "-ae", 1000, "7"),
    ("--minimum-annealing-factor", "-maf", 0.2, "0.5"),
    ("--rnn-dropout-rate", "-rdr", 0.1, "0.5"),
    ("--num-iafs", "-iafs", 0, "7"),
    ("--iaf-dim", "-id", 100, "7"),
    ("--checkpoint-freq", "-cf", 0, "7"),
    ("--load-opt", "-lopt", "", "file"),
    ("--load-model", "-lmod", "", "file"),
    ("--save-opt", "-sopt", "", "file"),
    ("--save-model", "-smod", "", "file"),
    ("--cuda", None, False, None),
    ("--jit", None, False, None),
    ("--tmc", None, False, None),
    ("--tmcelbo", None, False, None),
    ("--tmc-num-samples", None, 10, "7"),
    ("--log", "-l", "dmm.log", "file"),
]
SIZES = ["--z-dim", "3", "--emission-dim", "4", "--transition-dim", "5", "--rnn-dim", "6"]
TINY = [*SIZES, "-mbs", "4", "-ae", "1", "--eval-frequency", "1", "--no-tensorboard"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    save_npz(chorales(8, 3, 3, num_steps=(8, 12)), path)
    return str(path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, data_file: str) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *TINY, "--data", data_file, "-n", "2", "--out", str(out)]) == 0
    return out


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The only line on standard error of a refused command."""
    try:
        result: object = main(arguments)
    except SystemExit as end:  # argparse's way
        result = end.code
    assert result == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("dmm-fast")
    return error


@pytest.mark.parametrize(("name", "short", "default", "value"), EXAMPLE_FLAGS)
def test_flags_are_those_of_the_example(
    name: str, short: str | None, default: Any, value: str | None
) -> None:
    field = name.removeprefix("--").replace("-", "_")
    parse = build_parser().parse_args
    plain = getattr(parse(["train"]), field)
    assert plain == default
    assert type(plain) is type(default)
    for flag in filter(None, (name, short)):
        given = getattr(parse(["train", flag] + ([value] if value else [])), field)
        assert given == (type(default)(value) if value else True)


def test_flags_reach_the_settings() -> None:
    assert train_config(build_parser().parse_args(["train"])) == TrainConfig(checkpoint_freq=0)
    flags = ["-lr", "0.1", "--tmc", "-smod", "m", "--out", "o", "--no-progress", "--seed", "3"]
    assert train_config(build_parser().parse_args(["train", *flags])) == TrainConfig(
        learning_rate=0.1, elbo="tmc", save_model=Path("m"), out=Path("o"), progress=False, seed=3
    )


def test_train_writes_its_files(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert names == {LAST, BEST, "metrics.jsonl", "dmm.log"}
    log = (run_dir / "dmm.log").read_text()
    assert "[training epoch 0001]" in log
    assert "[val/test epoch 0001]" in log


def test_train_prints_its_metrics(tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", *TINY, "--data", data_file, "-n", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for line in read_metrics(out / "metrics.jsonl"):
        assert f"[training epoch {line['epoch']:04.0f}]  {line['train']:.4f}" in printed
    last = read_metrics(out / "metrics.jsonl")[-1]
    assert f"[val/test epoch 0001]  {last['valid']:.4f}  {last['test']:.4f}" in printed


def test_resume_uses_the_settings_of_the_run(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    start = ["train", *TINY, "--data", data_file]
    assert main([*start, "-n", "3", "--out", str(one)]) == 0
    assert main([*start, "-n", "2", "--out", str(two)]) == 0
    again = ["train", "--resume", "--out", str(two), "-n", "3", "--no-tensorboard"]
    refused = complaint(capsys, *again, "--z-dim", "9")
    assert "z_dim: expected 3, as in" in refused
    # Without a number of epochs, the run ends where it was planned to end, which it has reached.
    before = (two / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", "--out", str(two), "--no-tensorboard"]) == 0
    assert (two / "metrics.jsonl").read_bytes() == before
    assert main(again) == 0
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    assert (two / "dmm.log").read_text().count("[training epoch") == 3


def test_without_out_only_named_files_are_written(
    tmp_path: Path, data_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = ["train", *TINY, "--data", data_file, "-n", "1"]
    assert main([*start, "-l", ""]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main([*start, "-smod", "m", "-sopt", "o", "-l", "log"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "o", "log"}
    DMM(z_dim=3, emission_dim=4, transition_dim=5, rnn_dim=6).load_state_dict(load_file("m"))
    assert main([*start, "-lmod", "m", "-lopt", "o", "-l", ""]) == 0


def test_a_torch_save_file_is_refused_with_a_remedy(
    tmp_path: Path, data_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({}, tmp_path / "m.pt")
    message = complaint(capsys, "train", "--data", data_file, "-lmod", str(tmp_path / "m.pt"))
    assert "m.pt: expected a safetensors file, got a file of torch.save" in message
    assert "weights_only=True" in message


def test_evaluate(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run_dir), "--json", "--num-particles", "20"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checkpoint"] == str(run_dir / BEST)
    assert set(report["splits"]) == {"train", "valid", "test"}
    for measured in report["splits"].values():
        elbo, nll = measured["negative_elbo"], measured["importance_nll"]
        assert set(elbo) == set(nll) == {"total_over_total", "mean_of_averages"}
        # 88 fair coins a step are 61 nats; the importance-sampled bound is the tighter one.
        assert 55 < nll["total_over_total"] < elbo["total_over_total"] < 70
    assert main(["evaluate", str(run_dir / LAST), "--split", "test", "--num-particles", "20"]) == 0
    printed = capsys.readouterr().out
    assert "nats per time step" in printed
    assert "valid" not in printed
    again = report["splits"]["test"]["negative_elbo"]["total_over_total"]
    # The model of the last epoch was the best, and the seed is the same.
    assert f"{again:.4f}" in printed


def test_evaluate_on_other_data(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.npz"
    save_npz(chorales(2, 2, 2, seed=9, num_steps=(8, 9)), other)
    arguments = ["evaluate", str(run_dir), "--data", str(other), "--num-particles", "2", "--json"]
    capsys.readouterr()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "other"


def test_generate(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gallery"
    capsys.readouterr()
    flags = ["--num", "1", "--num-steps", "6", "--prefix-steps", "5", "--tempo", "60"]
    flags += ["--temperature", "0.5"]
    assert main(["generate", str(run_dir), "--out", str(out), *flags]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    kinds = ("sample_1", "reconstruction_1", "forecast_1")
    expected = {f"{kind}.{ext}" for kind in kinds for ext in ("png", "mid")} | {"training.png"}
    assert {path.name for path in printed} == expected == {path.name for path in out.iterdir()}
    for path in out.glob("*.png"):
        height, width = matplotlib.image.imread(path).shape[:2]
        assert width >= 1000
        assert height >= 400
    assert mido.MidiFile(out / "sample_1.mid").length == pytest.approx(6)
    assert mido.MidiFile(out / "forecast_1.mid").length == pytest.approx(5 + 6)


def test_generate_reports_a_prefix_that_is_too_long(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(tmp_path / "x"), "--prefix-steps", "40"]
    message = complaint(capsys, "generate", str(run_dir), *flags)
    assert "prefix_steps: expected at least 2 sequences longer than it, got" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--measured", "plans.json"], "--measured: expected --plan B T H Z beside it, got none"),
        (["info", "--gpu", "b200"], "--gpu: expected --plan B T H Z beside it, got none"),
        (["info", "--plan", "1", "2", "3", "4", "--gpu", "voodoo"], "choose from 'h100', 'h200', 'b200'"),
        (["info", "--plan", "1", "2", "3", "4", "--measured", "nowhere.json"], "nowhere.json"),
        (["info", "--plan", "20", "129", "600", "0"], "--plan: expected a whole number from 1, got '0'"),
        (["info", "--plan", "20", "129"], "--plan: expected 4 arguments"),
        (["train", "--jit"], "silently truncates longer sequences"),
        (["train", "--num-epochs", "many"], "-n/--num-epochs: invalid int value: 'many'"),
        (["train", "--elbo", "renyi"], "--elbo: invalid choice: 'renyi'"),
        (["train", "--gradient", "dreg"], "gradient: expected total or path with elbo trace, got dreg"),
        (["train", "--data", "nowhere.mat"], "nowhere.mat"),
        (["train", "--resume"], "--resume: expected the folder of a run in --out"),
        (["train", "--threads", "0"], "--threads: expected at least 1, got 0"),
        (["train", "-mbs", "0"], "mini_batch_size: expected at least 1, got 0"),
        (["evaluate", "nowhere.safetensors"], "nowhere.safetensors"),
        (["generate", "nowhere.safetensors", "--out", "x"], "nowhere.safetensors"),
        (["download", "beatles"], "name: expected one of jsb_chorales"),
        (["sing"], "invalid choice: 'sing'"),
        ([], "COMMAND"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complaint(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(run_dir: Path, data_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    message = complaint(capsys, "train", *TINY, "--data", data_file, "--out", str(run_dir))
    assert "out: expected a folder without a run, or resume" in message
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_divergence_has_its_own_exit_code(data_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-lr", "1e6", "-cn", "1e30", "-n", "50", "-l", ""]
    message = complaint(capsys, "train", *TINY, "--data", data_file, *flags, code=1)
    assert "loss: expected a finite number" in message


@pytest.mark.parametrize("module", ["mido", "matplotlib", "safetensors", "tqdm"])
def test_a_missing_extra_is_reported_with_its_installation(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data_file: str,
    module: str,
) -> None:
    # All are imported first, so that they can be restored: two copies of a class are different classes.
    from dmm_fast.music import _gallery  # noqa: F401

    parts = ("_commands", "_figures", "music", "training")
    for name in [
        name for name in sys.modules if name.startswith(tuple(f"dmm_fast.{part}" for part in parts))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for part in parts:
        monkeypatch.delattr(dmm_fast, part)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    if module == "tqdm":
        arguments = ["train", *TINY, "--data", data_file, "-n", "1"]
    else:
        arguments = ["generate", str(run_dir), "--out", "x", "--prefix-steps", "5"]
    message = complaint(capsys, *arguments)
    assert f"{module} is not installed: pip install 'dmm-fast[cli]'" in message


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start ``dmm-fast`` in a process of its own."""
    command = [sys.executable, "-m", "dmm_fast.cli", *arguments]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    # Background jobs of a shell ignore Ctrl-C, and their children inherit that.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **options}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root, **options)


def test_ctrl_c_saves_and_prints_how_to_resume(tmp_path: Path, data_file: str) -> None:
    out = tmp_path / "run"
    process = start("train", *TINY, "--data", data_file, "--out", str(out), "--threads", "1")
    assert process.stdout is not None
    for line in process.stdout:
        if "[training epoch" in line:
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.count("\n") == 1
    assert f"resume with: dmm-fast train --resume --out {out}" in error
    assert training.load_checkpoint(out / LAST).epoch >= 1


def test_a_closed_pipe_ends_training_quietly(data_file: str) -> None:
    process = start("train", *TINY, "--data", data_file, "-l", "", "--threads", "1")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    error = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert error == ""
