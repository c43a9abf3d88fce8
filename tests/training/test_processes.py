"""Training by several processes: the run of one process, a killed process, resumption by another number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast import training
from dmm_fast.cli import main
from dmm_fast.infer import DataParallel
from dmm_fast.training import TrainConfig
from dmm_fast.training._processes import check_processes

ROOT = Path(__file__).parents[2]
SETTINGS = "--num-sequences 9 --mini-batch-size 4 --rnn tanh --rnn-dim 8 --z-dim 4 --emission-dim 5"
RUN = [*SETTINGS.split(), "--transition-dim", "5", "--average-decay", "0.9"]
RUN += ["--no-tensorboard", "--no-progress", "--threads", "1"]
ENDLESS = 100_000


def launched(*arguments: str) -> subprocess.Popen[str]:
    """Two processes of ``python -m dmm_fast train``."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, "-m", "dmm_fast", "train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of_rank(launcher: int, rank: int) -> int:
    """The process of a rank, a child of the launcher."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no child of {launcher} has rank {rank}")


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run of two processes of which one was killed after some epochs: its folder, exit code and errors."""
    out = tmp_path_factory.mktemp("killed") / "run"
    run = launched(*RUN, "--out", str(out), "--num-epochs", str(ENDLESS), "--eval-frequency", "2")
    try:
        deadline = time.monotonic() + 200
        while not (out / "metrics.jsonl").exists() or len(metrics(out)) < 4:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process_of_rank(run.pid, 1), signal.SIGKILL)
        _, errors = run.communicate(timeout=100)
    finally:
        run.terminate()  # which ends its processes too
        run.wait(60)
    return out, run.returncode, errors


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(killed: tuple[Path, int, str]) -> None:
    out, code, errors = killed
    assert code == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("dmm-fast: ")]
    assert line.startswith(
        "dmm-fast: rank 0: processes: expected an answer from each one of this run, got none"
    )
    command = "torchrun --nproc-per-node 2 -m dmm_fast train --resume"
    assert line.endswith(f". saved {out / 'last.safetensors'}; resume with: {command} --out {out}")
    assert sorted(file.name for file in out.iterdir()) == [
        "best.safetensors",
        "dmm.log",
        "last.safetensors",
        "metrics.jsonl",
    ]
    assert training.load_checkpoint(out / "last.safetensors").epoch >= 3


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_one_process_resumes_the_run_of_two_as_if_it_had_been_alone(
    killed: tuple[Path, int, str], tmp_path: Path
) -> None:
    out, _, _ = killed
    epochs = str(training.load_checkpoint(out / "last.safetensors").epoch + 3)
    assert main(["train", "--resume", "--out", str(out), "--num-epochs", epochs]) == 0
    alone = tmp_path / "alone"
    command = ["train", *RUN, "--out", str(alone), "--num-epochs", epochs, "--eval-frequency", "2"]
    assert main(command) == 0
    ours, theirs = metrics(out), metrics(alone)
    assert len(ours) == int(epochs)
    # The last epoch of either run is evaluated, whenever that is.
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(yours, rel=1e-4)
    one, other = (training.load_checkpoint(folder / "last.safetensors") for folder in (out, alone))
    for name, value in other.model.items():
        assert (one.model[name] - value).abs().max() < 1e-4, name


def test_an_error_of_all_processes_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "train": 1.0}\n')
    run = launched(*RUN, "--out", str(tmp_path), "--num-epochs", "1")
    _, errors = run.communicate(timeout=100)
    assert run.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("dmm-fast: ")]
    assert len(lines) == 1
    assert lines[0].startswith("dmm-fast: out: expected a folder without a run")


class Ranks(DataParallel):
    """Two processes, of which this is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elbo": "tmc"}, "elbo: expected trace, mean_field or importance with several processes, got 'tmc'"),
        (
            {"mini_batch_size": 1},
            "mini_batch_size: expected at least a sequence for each of 2 processes",
        ),
        ({"cuda": True}, "cuda: expected a GPU for each of the 2 processes of this machine, got 1"),
    ],
)
def test_settings_that_cannot_be_spread_are_refused(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=message):
        check_processes(TrainConfig(**settings), Ranks())
