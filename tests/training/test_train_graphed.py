"""Training as on a GPU: replayed steps, rates on the device, losses read later."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import SVI

from dmm_fast import training
from dmm_fast.data import Dataset, SequenceSet, chorales, from_arrays, split
from dmm_fast.training import NonFiniteLossError, TrainConfig, Trainer, TrainingInterrupted, read_metrics
from dmm_fast.training._folder import LAST
from tests.helpers_model import assert_close
from tests.helpers_train import GraphedTrainer

SETTINGS: dict[str, Any] = {
    "num_epochs": 4,
    "mini_batch_size": 5,
    "annealing_epochs": 2,
    "z_dim": 4,
    "emission_dim": 5,
    "transition_dim": 6,
    "rnn_dim": 7,
    "eval_frequency": 2,
    "learning_rate": 0.01,
    "lr_schedule": "cosine",
    "warmup_steps": 4,
    "tensorboard": False,
    "progress": False,
}
STEPS_AN_EPOCH = 3


@pytest.fixture(scope="module")
def data() -> Dataset:
    return chorales(12, 3, 3, num_steps=(8, 12))


def controlled() -> Dataset:
    """Real values, some of them missing, with controls and covariates."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    arrays, controls = ([draw(8 + i % 5, D) for i in range(18)] for D in (2, 1))
    arrays[3][2] = math.nan
    return split(from_arrays(arrays, controls=controls, static=draw(18, 1)), (2 / 3, 1 / 6, 1 / 6))


@pytest.mark.parametrize("kind", ["notes", "controlled"])
def test_the_run_equals_that_of_plain_steps(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = SETTINGS
    if kind == "controlled":
        data = controlled()
        settings = {**SETTINGS, "emission": "gaussian", "augment": "both", "mask_input": True}
        settings["guide_weight_decay"] = 0.0
    # Noise for more steps would change the noise from the second mini-batch on.
    monkeypatch.setattr(SequenceSet, "padded_steps", lambda self, longest: longest)
    plain = Trainer(TrainConfig(out=tmp_path / "plain", **settings), data)
    plain.run()
    graphed = GraphedTrainer(TrainConfig(out=tmp_path / "graphed", **settings), data)
    graphed.run()
    assert graphed.graphs.replays > 2
    ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("graphed", "plain"))
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(yours, rel=1e-5)
    one, other = (training.load_checkpoint(tmp_path / name / LAST) for name in ("graphed", "plain"))
    for name, value in other.model.items():
        assert_close(one.model[name], value, 1e-4, name)


def test_mini_batches_are_padded_to_few_lengths(data: Dataset) -> None:
    trainer = GraphedTrainer(TrainConfig(**SETTINGS), data)
    trainer.run()
    # Two sizes of mini-batches, and one number of time steps: no sequence has more than 16.
    assert (trainer.graphs.runs, trainer.graphs.captures) == (2, 2)
    assert trainer.graphs.replays == 4 * STEPS_AN_EPOCH - 2


def test_an_interrupted_run_continues_bitwise_equal(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    GraphedTrainer(TrainConfig(out=tmp_path / "unbroken", **SETTINGS), data).run()
    config = TrainConfig(out=tmp_path / "broken", **SETTINGS)
    broken = GraphedTrainer(config, data)
    gather, calls = broken._batches.gather, 0

    def interrupting(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return gather(*args)

    broken.svi.gather = interrupting
    with pytest.raises(TrainingInterrupted, match="after 0 epochs and 2 steps"):
        broken.run()
    assert training.load_checkpoint(tmp_path / "broken" / LAST).epoch_loss > 0
    GraphedTrainer(TrainConfig(out=tmp_path / "broken", resume=True, **SETTINGS), data).run()
    ours, theirs = (tmp_path / name / "metrics.jsonl" for name in ("broken", "unbroken"))
    assert ours.read_bytes() == theirs.read_bytes()
    one, other = (training.load_checkpoint(tmp_path / name / LAST) for name in ("broken", "unbroken"))
    assert all(torch.equal(one.model[name], value) for name, value in other.model.items())


def test_a_loss_read_later_is_reported_with_its_own_step(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(TrainConfig(out=tmp_path, **SETTINGS), data)
    trainer._steps_ahead = 64
    original, done = SVI.step, 0

    def spoilt(self: SVI, *args: Any) -> float:
        nonlocal done
        done += 1
        loss: float = original(self, *args)
        return math.nan if done == STEPS_AN_EPOCH + 2 else loss

    monkeypatch.setattr(SVI, "step", spoilt)
    with pytest.raises(NonFiniteLossError, match="got nan in epoch 1, step 1"):
        trainer.run()
    assert done == 2 * STEPS_AN_EPOCH
    assert training.load_checkpoint(tmp_path / LAST).epoch == 1
