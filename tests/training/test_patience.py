"""Early stopping by the validation bound, and the evaluations that it goes by."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast import training
from dmm_fast.data import Dataset
from dmm_fast.infer import ElboEvaluation, evaluate_elbo
from dmm_fast.training import TrainConfig, Trainer, _evaluation, _trainer, read_metrics, train
from dmm_fast.training._evaluation import Patience
from dmm_fast.training._folder import BEST, LAST
from dmm_fast.training._recovery import Progress
from tests.helpers_train import STEPS_AN_EPOCH, assert_same_run, small_data, stop_at, tiny

BOUNDS = [9.0, 8.0, 8.5, float("nan"), 7.0, 7.0, 7.5, 7.2, 6.0, 6.5]
"""Validation bounds of the evaluations after epochs 1, 2 and so on."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch, data: Dataset) -> None:
    """Make the evaluation after epoch n, in whichever run, find the n-th of ``BOUNDS``."""

    def evaluated(self: Any, sequences: Any) -> ElboEvaluation:
        epoch = self._trainer_of_test.progress.epoch
        return ElboEvaluation(BOUNDS[epoch - 1], BOUNDS[epoch - 1] + 1)

    def trainer(self: Trainer, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self._evaluation._trainer_of_test = self  # type: ignore[attr-defined]

    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", trainer)
    monkeypatch.setattr(_evaluation.Evaluation, "_nats", evaluated)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "dmm_fast"):
        yield caplog


def evaluated_epochs(out: Path) -> list[int]:
    return [int(line["epoch"]) for line in read_metrics(out / "metrics.jsonl") if "valid" in line]


@pytest.mark.usefixtures("bounds")
@pytest.mark.parametrize(("patience", "last", "best"), [(1, 3, 2), (2, 4, 2), (3, 8, 5), (0, 10, 9)])
def test_a_run_stops_after_as_many_evaluations_without_a_better_bound(
    tmp_path: Path, data: Dataset, said: pytest.LogCaptureFixture, patience: int, last: int, best: int
) -> None:
    train(tiny(tmp_path, num_epochs=11, patience=patience, checkpoint_freq=0), data)
    assert evaluated_epochs(tmp_path) == list(range(1, last + 1))
    saved = training.load_checkpoint(tmp_path / LAST)
    assert (saved.epoch, saved.best, saved.waited) == (last + 1, BOUNDS[best - 1], last - best)
    assert training.load_checkpoint(tmp_path / BEST).epoch == best + 1
    lines = [message for message in said.messages if "stopped" in message]
    bound = f"{BOUNDS[best - 1]:.4f}"
    assert lines == [
        f"stopped after epoch {last}: {patience} evaluations without a validation bound below {bound} "
        f"(patience {patience})"
    ] * (patience > 0)


@pytest.mark.usefixtures("bounds")
def test_a_stopped_run_is_finished_and_a_higher_patience_continues_it(
    tmp_path: Path, data: Dataset, said: pytest.LogCaptureFixture
) -> None:
    whole = tiny(tmp_path / "whole", num_epochs=11, patience=3)
    train(whole, data)
    config = dataclasses.replace(whole, out=tmp_path / "stopped", patience=2)
    train(config, data)
    files = {path: path.read_bytes() for path in (tmp_path / "stopped").iterdir()}
    said.clear()
    train(dataclasses.replace(config, resume=True), data)
    assert {path: path.read_bytes() for path in (tmp_path / "stopped").iterdir()} == files
    assert said.messages[-1] == (
        "the run is finished: 2 evaluations without a validation bound below 8.0000 (patience 2); "
        "a higher patience continues it"
    )
    train(dataclasses.replace(config, patience=3, resume=True), data)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.usefixtures("bounds")
def test_another_number_of_epochs_continues_a_stopped_run_to_the_next_evaluation(
    tmp_path: Path, data: Dataset
) -> None:
    config = tiny(tmp_path, num_epochs=11, patience=1)
    train(config, data)
    assert evaluated_epochs(tmp_path) == [1, 2, 3]
    longer = dataclasses.replace(config, num_epochs=12, resume=True)
    train(longer, data)
    assert evaluated_epochs(tmp_path) == [1, 2, 3, 4]
    # One more evaluation decided, so that an interruption before it would have left a run to be resumed.
    assert training.load_checkpoint(tmp_path / LAST).waited == 1
    train(longer, data)
    assert evaluated_epochs(tmp_path) == [1, 2, 3, 4]


@pytest.mark.usefixtures("bounds")
def test_other_intervals_of_checkpoints_do_not_continue_a_stopped_run(tmp_path: Path, data: Dataset) -> None:
    config = tiny(tmp_path, num_epochs=11, patience=1)
    train(config, data)
    train(dataclasses.replace(config, checkpoint_freq=3, resume=True), data)
    assert evaluated_epochs(tmp_path) == [1, 2, 3]


@pytest.mark.usefixtures("bounds")
@pytest.mark.parametrize(("epoch", "step", "waited"), [(3, 0, 0), (4, 0, 0), (5, 0, 1), (3, 1, 0), (4, 1, 1)])
def test_evaluations_that_are_undone_do_not_count(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, waited: int
) -> None:
    """A loss that is not finite restores the state before an evaluation (step 0), or after it (step 1)."""
    monkeypatch.setattr(_trainer, "_STEPS_AHEAD", 2)
    stop_at(monkeypatch, epoch * STEPS_AN_EPOCH + step + 1, lambda: float("nan"))
    seen: list[tuple[int, float | None]] = []
    trainer = Trainer(tiny(tmp_path, num_epochs=epoch + 1, patience=9, recover=True), data)
    original = trainer._recovery.go_back

    def go_back(*arguments: Any) -> bool:
        is_back = original(*arguments)
        seen.append((trainer.progress.waited, trainer.progress.best))
        return is_back

    monkeypatch.setattr(trainer._recovery, "go_back", go_back)
    trainer.run()
    # The best bound is that of the kept checkpoint, even if its evaluation is undone.
    assert seen == [(waited, 8.0)]


def test_one_process_logs_that_a_run_has_stopped(said: pytest.LogCaptureFixture) -> None:
    for logs in (False, True):
        patience = Patience(tiny(patience=1), Progress(), logs=logs)
        patience.judge({"epoch": 1.0, "valid": float("nan")})
        patience.announce()
        assert patience.is_over
        assert len(said.messages) == 2 * logs


def test_a_run_that_loses_its_best_model_is_warned_of(data: Dataset, said: pytest.LogCaptureFixture) -> None:
    train(tiny(num_epochs=1, patience=1), data)
    assert "patience: without out the model of the best validation bound is not kept" in said.messages


def test_an_evaluation_has_both_averages_over_as_many_draws_as_set(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path, num_epochs=2, evaluation_particles=40), data)
    trained = training.load_dmm(tmp_path / LAST)
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    for name in ("valid", "test"):
        torch.manual_seed(1)
        # One sequence at a time: 64 // 40.
        expected = evaluate_elbo(trained, getattr(data, name), 40, 1)
        assert (line[name], line[f"{name}_mean"]) == expected
        assert line[name] != line[f"{name}_mean"]


def test_a_checkpoint_without_the_later_fields_is_resumed(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "unbroken", num_epochs=3), data)
    config = tiny(tmp_path / "old", num_epochs=2)
    train(config, data)
    path = tmp_path / "old" / LAST
    fields = training._checkpoint._read(path, "checkpoint")
    later = ("annealing_steps", "average_decay", "evaluation_particles", "guide_weight_decay")
    later = (*later, "past_dropout_rate", "patience")
    for name in later:
        del fields["config"][name]
    del fields["unaveraged"], fields["waited"]
    training._checkpoint._write(path, "checkpoint", fields)
    assert training.load_checkpoint(path).waited == 0
    train(dataclasses.replace(config, num_epochs=3, resume=True), data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "old")


def test_patience_needs_evaluations() -> None:
    with pytest.raises(ValueError, match=r"patience: expected 0 with eval_frequency 0, .*, got 3"):
        TrainConfig(patience=3, eval_frequency=0)
