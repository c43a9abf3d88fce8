"""Training to a test NLL: both train correctly, alternately, and for the same time."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import training_run
from benchmarks.baseline import BaselineDMM
from benchmarks.quality import to_target
from benchmarks.quality.to_target import TARGET, Plan, reached, row, train_interleaved
from benchmarks.training_run import Evaluation, FastTrainingStepper, TrainingRun, TutorialTrainingStepper
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.training import TrainConfig, Trainer
from tests.helpers_graph import RecordedGraphs

CPU = torch.device("cpu")
# With four rows, noise drawn per step equals noise drawn at once.
SETTINGS = {"mini_batch_size": 4, "seed": 3, "annealing_epochs": 4}
CONFIG = TrainConfig(**SETTINGS)


def sequences(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    x = (torch.rand(len(lengths), max(lengths), 88, generator=generator) < 0.1).float()
    return SequenceSet(x * valid.unsqueeze(-1), torch.tensor(lengths))


@pytest.fixture(scope="module")
def data():
    return Dataset(
        "tiny", sequences(3, 5, 2, 4, 5, 1, 4, 3), sequences(4, 2, seed=1), sequences(3, 3, seed=2)
    )


def a_training_run(data, make=FastTrainingStepper):
    return TrainingRun("it", make, data, CPU, CONFIG)


def trained(data, count, make=FastTrainingStepper):
    """The evaluations after each of ``count`` epochs."""
    it = a_training_run(data, make)
    for epoch in range(count):
        it.train(math.inf, epoch + 1)
        it.evaluate()
    return it


def nlls(curve):
    return [value for point in curve for value in (point.train, point.valid, point.test, point.test_elbo)]


def test_dmm_fast_trains_like_the_command(data, tmp_path):
    config = TrainConfig(
        **SETTINGS, num_epochs=3, eval_frequency=1, out=tmp_path, tensorboard=False, progress=False
    )
    Trainer(config, data).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = trained(data, 3).curve
    assert [point.train for point in curve] == [line["train"] for line in lines]
    assert [point.test_elbo for point in curve[1:]] == [line["test"] for line in lines[1:]]
    assert all(point.test < point.test_elbo for point in curve)


def test_both_train_alike(data):
    ours, tutorial = trained(data, 3), trained(data, 3, TutorialTrainingStepper)
    assert [(p.epoch, p.step) for p in ours.curve] == [(1, 2), (2, 4), (3, 6)]
    assert nlls(ours.curve) == pytest.approx(nlls(tutorial.curve), rel=1e-5)


def test_alternating_changes_no_result(data):
    alone = trained(data, 2)
    in_turn, other = a_training_run(data), a_training_run(data, TutorialTrainingStepper)
    for _ in range(4):  # one step each, as any time exceeds zero
        in_turn.train(1e-9)
        other.train(1e-9)
        in_turn.evaluate()
    assert (in_turn.steps, other.steps) == (4, 4)
    assert nlls(in_turn.curve[1::2]) == nlls(alone.curve)


def test_graphs_are_kept_between_turns(data):
    graphs, full = RecordedGraphs(), replace(data, train=sequences(*[5] * 8))
    it = a_training_run(full, partial(FastTrainingStepper, capturer=graphs))
    for _ in range(6):
        it.train(1e-9)
        it.evaluate()
    assert (graphs.runs, graphs.captures, graphs.replays) == (1, 1, 5)
    plain = trained(full, 3)
    assert nlls(it.curve[1::2]) == pytest.approx(nlls(plain.curve), rel=1e-6)


def test_a_turn_leaves_global_state_unchanged(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(data, 1)
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_does_not_count_as_training_time(data, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training_run.time, "perf_counter", lambda: now[0])

    class Stepper(TutorialTrainingStepper):
        def step(self, *args):
            now[0] += 2.0
            return super().step(*args)

    def evaluate(*args):
        now[0] += 1000.0
        return quality_evaluate(*args)

    quality_evaluate = training_run.evaluate_elbo
    monkeypatch.setattr(training_run, "evaluate_elbo", evaluate)
    it = a_training_run(data, Stepper)
    it.train(5.0)  # a third step begins at 4 and is finished
    assert (it.steps, it.epoch, it.seconds) == (3, 1, 6.0)
    assert it.ms == [2000.0, 2000.0]
    it.evaluate()
    it.train(1.0)
    it.evaluate()
    assert [(p.seconds, p.epoch, p.step) for p in it.curve] == [(6.0, 1, 3), (8.0, 2, 4)]


class Walker:
    """A training run whose steps take a given time and lower the NLL."""

    def __init__(self, name, step, start=7.5):
        self.name, self.step, self.nll = name, step, start
        self.seconds, self.epoch, self.steps = 0.0, 0, 0
        self.curve, self.ms, self.turns = [], [1.0], []

    def train(self, seconds, epochs=math.inf):
        end, begun = self.seconds + seconds, self.seconds
        while self.seconds < end and self.epoch < epochs:
            self.seconds += self.step
            self.epoch += 1
            self.steps += 1
            self.nll -= 0.1
        self.turns.append(self.seconds - begun)

    def evaluate(self):
        self.curve.append(Evaluation(self.seconds, self.epoch, self.steps, 0.0, 0.0, self.nll, 9.0))


def test_both_have_the_same_time():
    ours, other = Walker("ours", 0.25), Walker("other", 3.0)
    train_interleaved(ours, other, Plan(epochs=47, turn=2.0))
    assert ours.epoch == 47
    assert ours.seconds <= other.seconds < ours.seconds + other.step
    assert max(ours.turns) == 2.0


def test_training_ends_at_the_target_or_the_time_limit():
    ours = Walker("ours", 0.25)
    train_interleaved(ours, Walker("other", 0.5), Plan(turn=0.5, until_target=True))
    assert ours.curve[-1] == reached(ours.curve)
    assert ours.curve[-2].test > TARGET >= ours.curve[-1].test
    ours = Walker("ours", 0.25)
    train_interleaved(ours, Walker("other", 0.5), Plan(seconds=12.0, turn=5.0))
    assert (ours.seconds, ours.turns) == (12.0, [5.0, 5.0, 2.0])


def test_no_turn_begins_that_could_exceed_the_deadline(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(to_target.time, "monotonic", lambda: now[0])

    class Slow(Walker):
        def evaluate(self):
            super().evaluate()
            now[0] += 20.0

    ours = Slow("ours", 0.25)
    train_interleaved(ours, Walker("other", 0.5), Plan(turn=5.0, deadline=109.0))
    assert ours.turns == []
    # There is time for more than two turns of 5 seconds, but not with their evaluations.
    train_interleaved(ours, Walker("other", 0.5), Plan(turn=5.0, deadline=155.0))
    assert len(ours.turns) == 2


def test_the_row_has_the_progress_of_the_run():
    it = Walker("it", 2.0, start=7.0)
    for _ in range(3):
        it.train(2.0)
        it.evaluate()
    told = row(it, "tiny")
    assert (told["impl"], told["n"], told["median_ms"]) == ("it", 1, 1.0)
    extra = told["extra"]
    assert extra["reached"] == extra["curve"][1]
    assert (extra["reached"]["seconds"], extra["reached"]["step"]) == (4.0, 2)
    assert (extra["seconds"], extra["epochs"], extra["steps"]) == (6.0, 3, 3)
    assert extra["best_test"] == extra["last_test"] == pytest.approx(6.7)
    far = Walker("far", 2.0)
    far.train(2.0)
    far.evaluate()
    assert row(far, "tiny")["extra"]["reached"] is None


def test_nothing_is_trained_if_the_losses_disagree(data, tmp_path, monkeypatch, capsys):
    class Forgets(BaselineDMM):
        def guide(self, *args):
            super().guide(*args[:4], 0.5)

    other = replace(to_target.OURS[0], module=lambda sizes: Forgets(**sizes))
    monkeypatch.setattr(to_target, "OURS", (other,))
    monkeypatch.setattr(to_target, "chosen_data", lambda _: data)
    assert to_target.main(["--out", str(tmp_path), "--epochs", "1"]) == 1
    assert "the implementations do not agree" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_writes_both(data, tmp_path, monkeypatch):
    monkeypatch.setattr(to_target, "chosen_data", lambda _: data)
    assert to_target.main(["--out", str(tmp_path), "--epochs", "2", "--turn", "0.05"]) == 0
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert results["suite"] == "cpu-quality"
    assert [r["impl"] for r in results["cases"]] == ["tutorial", "dmm_fast"]
    assert {r["backend"] for r in results["correctness"]} == {"tutorial", "dmm_fast"}
    assert all(r["suite"] == "train_to_quality" and r["extra"]["curve"] for r in results["cases"])
