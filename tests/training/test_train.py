"""Training: the loop of the example, and resumed runs that are bitwise equal to uninterrupted ones."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from dmm_fast import DMM, training
from dmm_fast.data import Dataset, chorales, get_mini_batch, save_npz
from dmm_fast.infer import evaluate_elbo
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.training import (
    CheckpointError,
    NonFiniteLossError,
    Trainer,
    TrainingInterrupted,
    read_metrics,
    train,
)
from dmm_fast.training._folder import BEST, LAST
from tests.helpers_train import STEPS_AN_EPOCH, assert_same_run, small_data, stop_at, tiny


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


def test_results_equal_those_of_the_examples_loop(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, learning_rate=0.003, eval_frequency=0, seed=5)
    train(config, data)
    # The example with its batches (packed, reversed, sorted) and its loop.
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    dmm = DMM(z_dim=4, emission_dim=5, transition_dim=6, rnn_dim=7)
    adam = PyroClippedAdam(
        {"lr": 0.003, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
    )
    svi = SVI(dmm.model, dmm.guide, adam, Trace_ELBO())
    losses = []
    for epoch in range(4):
        nll, shuffled = 0.0, torch.randperm(12)
        for which in range(STEPS_AN_EPOCH):
            factor = 1.0 if epoch >= 2 else 0.2 + 0.8 * (which + epoch * 3 + 1) / 6.0
            batch = get_mini_batch(
                shuffled[which * 5 : which * 5 + 5], data.train.sequences, data.train.lengths
            )
            nll += svi.step(*batch, factor)
        losses.append(nll / float(data.train.lengths.sum()))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["train"] for line in metrics] == pytest.approx(losses, rel=1e-5)
    assert metrics[-1]["learning_rate"] == pytest.approx(0.003 * 0.99996**12, rel=1e-12)


def test_evaluation_does_not_change_training(tmp_path: Path, data: Dataset) -> None:
    often = tiny(tmp_path / "often", eval_frequency=1, rnn_dropout_rate=0.3, num_layers=2)
    train(often, data)
    train(dataclasses.replace(often, out=tmp_path / "never", eval_frequency=0), data)
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("often", "never"))
    assert [line["train"] for line in one] == [line["train"] for line in other]
    assert [("valid" in line) for line in one] == [False, True, True, True]
    assert not any("valid" in line for line in other)
    assert not (tmp_path / "never" / BEST).exists()


def test_last_epoch_is_always_evaluated_and_best_is_by_validation(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, eval_frequency=2, num_epochs=4), data)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    measured = {int(line["epoch"]): line["valid"] for line in metrics if "valid" in line}
    assert set(measured) == {2, 3}
    best = training.load_checkpoint(tmp_path / BEST)
    assert best.best == min(measured.values())
    assert measured[best.epoch - 1] == best.best


def test_evaluation_is_without_dropout(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_layers=2, rnn_dropout_rate=0.9, num_epochs=2), data)
    trained = training.load_dmm(tmp_path / LAST)
    torch.manual_seed(1)
    (measured,) = [m for m in read_metrics(tmp_path / "metrics.jsonl") if "test" in m]
    assert measured["test"] == evaluate_elbo(trained, data.test).total_over_total


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (signal.SIGINT, {}),
        (signal.SIGTERM, {"elbo": "mean_field", "augment": "both", "past_dropout_rate": 0.5}),
        (signal.SIGHUP, {"recover": True}),
        (signal.SIGINT, {"elbo": "tmc", "tmc_num_samples": 2}),
        (signal.SIGINT, {"elbo": "tmcelbo", "tmc_num_samples": 2}),
        (signal.SIGINT, {"num_iafs": 1, "iaf_dim": 6, "guide_weight_decay": 0.0}),
        (signal.SIGINT, {"num_layers": 2, "rnn_dropout_rate": 0.5}),
        (signal.SIGINT, {"lr_schedule": "cosine", "warmup_steps": 7, "num_epochs": 3}),
        (signal.SIGINT, {"inference": "st-r", "rnn": "lstm", "num_layers": 2, "rnn_dropout_rate": 0.5}),
        (signal.SIGINT, {"inference": "st-l", "rnn": "gru", "num_iafs": 1, "iaf_dim": 6}),
        (signal.SIGINT, {"inference": "st-lr", "rnn": "tanh", "num_layers": 2, "rnn_dropout_rate": 0.5}),
        (signal.SIGINT, {"inference": "mf-r", "num_iafs": 1, "iaf_dim": 6, "recover": True}),
        (signal.SIGINT, {"inference": "mf-l", "rnn": "lstm", "elbo": "mean_field"}),
        (signal.SIGINT, {"inference": "mf-lr", "rnn": "gru", "elbo": "tmc", "tmc_num_samples": 2}),
    ],
    ids=str,
)
def test_interrupted_in_mid_epoch_and_resumed_is_bitwise_equal(
    tmp_path: Path,
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    changes: dict[str, Any],
) -> None:
    unbroken = tiny(tmp_path / "unbroken", **{"num_epochs": 2, **changes})
    train(unbroken, data)
    broken = dataclasses.replace(unbroken, out=tmp_path / "broken")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS_AN_EPOCH + 2, lambda: signal.raise_signal(number))
        message = f"{number.name} after 1 epochs and 2 steps: saved .*--resume --out"
        with pytest.raises(TrainingInterrupted, match=message):
            train(broken, data)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert training.load_checkpoint(tmp_path / "broken" / LAST).step == 2
    # Interrupted again before the first step: the optimizer's state must not get lost.
    resumed = dataclasses.replace(broken, resume=True)
    Trainer(resumed, data)._save(LAST)
    train(resumed, data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    loaded, saved = (f(tmp_path / "broken" / LAST) for f in (training.load_dmm, training.load_checkpoint))
    assert loaded.inference == unbroken.inference
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in saved.model.items())


def test_a_checkpoint_without_a_guide_setting_is_resumed(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "unbroken", num_epochs=3), data)
    config = tiny(tmp_path / "old", num_epochs=2)
    train(config, data)
    saved = training.load_checkpoint(tmp_path / "old" / LAST)
    of_before = {name: value for name, value in saved.config.items() if name not in ("inference", "rnn")}
    assert len(of_before) == len(saved.config) - 2
    assert not {"inference", "rnn"} & saved.sizes.keys()
    training.save_checkpoint(tmp_path / "old" / LAST, dataclasses.replace(saved, config=of_before))
    assert training.load_dmm(tmp_path / "old" / LAST).inference == "st-r"
    train(dataclasses.replace(config, num_epochs=3, resume=True), data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "old")


DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch, torch._dynamo  # which the first optimizer imports: here once, not in every child
torch.set_num_threads(1)
from dmm_fast.training import TrainConfig, train
from dmm_fast.training._folder import LAST

out, settings, killed = Path(sys.argv[2]), eval(sys.argv[3]), 0
random.seed(int(sys.argv[4]))
while True:
    child = os.fork()
    if child == 0:
        resume = (out / LAST).exists()
        train(TrainConfig(data=sys.argv[1], out=out, resume=resume, **settings))
        os._exit(0)
    deadline = time.monotonic() + random.uniform(0.02, 0.4) + 0.05 * killed
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            print(killed, status)
            sys.exit(0)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += 1
"""


def test_killed_repeatedly_and_resumed_is_bitwise_equal(tmp_path: Path, data: Dataset) -> None:
    save_npz(data, tmp_path / "data.npz")
    config = tiny(tmp_path / "unbroken", data=str(tmp_path / "data.npz"), num_epochs=80)
    train(config)
    kept = {**config.kept(), "num_epochs": 80, "eval_frequency": 1, "tensorboard": False}
    settings = repr({name: value for name, value in kept.items() if name != "data"})
    command = [sys.executable, "-c", DRIVER, config.data, str(tmp_path / "killed"), settings, "1"]
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=120
    )
    assert result.returncode == 0, result.stderr
    killed, status = map(int, result.stdout.split())
    assert status == 0, result.stderr
    assert killed >= 3
    assert_same_run(tmp_path / "unbroken", tmp_path / "killed")


def test_resumed_run_drops_metrics_after_its_checkpoint(tmp_path: Path, data: Dataset) -> None:
    unbroken = tiny(tmp_path / "unbroken", checkpoint_freq=2)
    train(unbroken, data)
    half = dataclasses.replace(unbroken, out=tmp_path / "half", num_epochs=2)
    train(half, data)
    with (tmp_path / "half" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "tra')
    leftover = tmp_path / "half" / f".{LAST}.0123.part"
    leftover.write_bytes(b"half a checkpoint")
    train(dataclasses.replace(half, num_epochs=4, resume=True), data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "half")
    assert not leftover.exists()


def test_lost_metrics_are_detected(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: expected at least the \d+ bytes"):
        train(tiny(tmp_path, num_epochs=2, resume=True), data)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_stops_and_keeps_the_earlier_checkpoint(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    train(tiny(tmp_path / "one", num_epochs=1), data)
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS_AN_EPOCH + 1, lambda: loss)
        with pytest.raises(NonFiniteLossError, match=f"got {loss} in epoch 1, step 0.*saved before"):
            train(tiny(tmp_path / "two"), data)
    one, two = (training.load_checkpoint(tmp_path / name / LAST) for name in ("one", "two"))
    assert two.epoch == 1
    assert all(torch.equal(two.model[name], one.model[name]) for name in one.model)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("elbo", ["trace", "mean_field", "importance", "tmc", "tmcelbo"])
def test_divergence_is_reported_in_one_line_for_every_objective(data: Dataset, elbo: str) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        train(tiny(learning_rate=1e6, clip_norm=1e30, elbo=elbo, tmc_num_samples=2), data)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, r"learning_rate: expected 0\.01, as in .*, got 0\.02"),
        ({"rnn_dim": 9}, r"rnn_dim: expected 7, as in .*, got 9"),
        ({"seed": 1}, "seed: expected 0"),
        ({"inference": "mf-r"}, r"inference: expected 'st-r', as in .*, got 'mf-r'"),
        ({"rnn": "lstm"}, r"rnn: expected 'relu', as in .*, got 'lstm'"),
    ],
)
def test_resuming_another_run_is_refused(
    tmp_path: Path, data: Dataset, changes: dict[str, Any], message: str
) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(ValueError, match=message):
        train(tiny(tmp_path, resume=True, **changes), data)
    assert (tmp_path / LAST).read_bytes() == before


def test_resuming_on_other_data_is_refused(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    with pytest.raises(ValueError, match=r"data: expected the data .* was trained on"):
        train(tiny(tmp_path, resume=True), chorales(12, 3, 3, seed=1, num_steps=(8, 12)))


def test_a_cosine_fixes_the_number_of_epochs(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, num_epochs=1, lr_schedule="cosine")
    train(config, data)
    with pytest.raises(
        ValueError, match=r"num_epochs: expected 1, as in .*, since its cosine schedule spans"
    ):
        train(dataclasses.replace(config, resume=True, num_epochs=2), data)


def test_a_truncated_checkpoint_is_refused_and_unchanged(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    half = (tmp_path / LAST).read_bytes()[:5000]
    (tmp_path / LAST).write_bytes(half)
    with pytest.raises(CheckpointError, match="truncated"):
        train(tiny(tmp_path, resume=True), data)
    assert (tmp_path / LAST).read_bytes() == half


def test_starting_anew_over_a_run_is_refused(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=1), data)
    with pytest.raises(ValueError, match=f"out: expected .* got {tmp_path}, which has {LAST}"):
        train(tiny(tmp_path), data)


def test_resuming_without_a_run_is_reported(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(FileNotFoundError, match=f"{LAST}: expected a checkpoint to resume from"):
        train(tiny(tmp_path, resume=True), data)


def test_the_optimizer_follows_the_schedule(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, lr_schedule="cosine", warmup_steps=4, num_epochs=4, lr_decay=0.9)
    train(config, data)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    expected = []
    for epoch in range(4):
        step = 3 * epoch + 2
        factor = 0.5 * (1 + math.cos(math.pi * step / 12)) * min(1.0, (step + 1) / 4)
        expected.append(0.01 * 0.9 ** (step + 1) * factor)
    assert rates == pytest.approx(expected, rel=1e-12)


def test_model_and_optimizer_are_saved_and_loaded(tmp_path: Path, data: Dataset) -> None:
    files = {"save_model": tmp_path / "m", "save_opt": tmp_path / "o"}
    dmm = train(tiny(**files), data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "o"]
    start = Trainer(tiny(load_model=tmp_path / "m", load_opt=tmp_path / "o"), data)
    assert all(torch.equal(value, dmm.state_dict()[name]) for name, value in start.dmm.state_dict().items())
    start.run()
    steps = {state["state"][0]["step"] for state in start.optimizer.get_state().values()}
    assert steps == {2 * 4 * STEPS_AN_EPOCH}


def test_an_optimizer_state_of_another_dmm_is_refused(tmp_path: Path, data: Dataset) -> None:
    train(tiny(save_model=tmp_path / "m"), data)
    train(tiny(save_opt=tmp_path / "o", num_layers=2), data)
    with pytest.raises(CheckpointError, match=r"o: expected an optimizer state for the parameters"):
        Trainer(tiny(load_model=tmp_path / "m", load_opt=tmp_path / "o"), data)


def test_the_weight_decay_of_the_guide_is_its_own(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, num_epochs=1, num_iafs=1, iaf_dim=6, guide_weight_decay=0.5, eval_frequency=0)
    trainer = Trainer(config, data)
    trainer.run()
    resumed = Trainer(dataclasses.replace(config, num_epochs=2, resume=True), data)
    resumed.run()
    for each in (trainer, resumed):
        decays = {
            name.removeprefix("dmm$$$"): state["param_groups"][0]["weight_decay"]
            for name, state in each.optimizer.get_state().items()
        }
        assert decays.keys() == {name for name, _ in each.dmm.named_parameters()}
        of_model = ("emitter.", "trans.", "z_0")
        assert decays == {name: 2.0 if name.startswith(of_model) else 0.5 for name in decays}
        assert {0.5, 2.0} == set(decays.values())


def test_tensorboard_has_the_scalars(tmp_path: Path, data: Dataset) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(tmp_path, tensorboard=True, num_epochs=2), data)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert {"train", "valid", "test", "learning_rate", "steps_per_second"} <= set(events.Tags()["scalars"])
    drawn = [event.value for event in events.Scalars("train")]
    assert drawn == pytest.approx([line["train"] for line in metrics], rel=1e-6)


def test_cuda_is_refused_if_unavailable(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda: expected a CUDA device"):
        Trainer(tiny(cuda=True), data)


def test_training_on_segments_is_training_on_a_set_of_segments(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "cut", segment_steps=5), data)
    pieces = Dataset(data.name, data.train.segments(5), data.valid, data.test)
    train(tiny(tmp_path / "given"), pieces)
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("cut", "given"))
    assert one == other
    stopped = tiny(tmp_path / "stopped", segment_steps=5, num_epochs=2)
    train(stopped, data)
    train(dataclasses.replace(stopped, num_epochs=4, resume=True), data)
    assert_same_run(tmp_path / "cut", tmp_path / "stopped")
    with pytest.raises(ValueError, match=r"segment_steps: expected 5, as in .*, got 6"):
        Trainer(dataclasses.replace(stopped, segment_steps=6, resume=True), data)


def test_the_length_of_a_run_can_be_a_number_of_steps(tmp_path: Path, data: Dataset) -> None:
    epochs = tiny(tmp_path / "epochs", num_epochs=3, lr_schedule="cosine")
    train(epochs, data)
    # Three epochs of three steps are the fewest with eight steps.
    steps = dataclasses.replace(epochs, out=tmp_path / "steps", num_epochs=5000, num_steps=8)
    train(steps, data)
    assert_same_run(tmp_path / "epochs", tmp_path / "steps")
    assert Trainer(dataclasses.replace(steps, resume=True), data).config.num_epochs == 3
    with pytest.raises(ValueError, match="num_steps: expected None beside num_epochs 3, got 8"):
        dataclasses.replace(epochs, num_steps=8)
    with pytest.raises(ValueError, match=r"num_epochs: expected 3, as in .*, got 4"):
        Trainer(dataclasses.replace(steps, num_steps=12, resume=True), data)
